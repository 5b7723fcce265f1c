"""Runs variants of one bundle, one at a time, on this machine or on hosts behind a slow link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnic.bench.hosts import Hosts
from dnic.bench.linkspec import LinkSpec
from dnic.bench.measured import Measured, measured
from dnic.bench.nursery import Nursery
from dnic.bench.pace import FIRST_STEPS, Pace
from dnic.bench.settled import settled
from dnic.bench.variant import Variant
from dnic.bench.wire import wire_bytes
from dnic.partition.plan import Plan
from dnic.runtime.launch import launch
from dnic.runtime.metrics import METRICS_FILE, read_metrics
from dnic.runtime.options import MICROBATCHED

FIRST = Variant("first", "backprop", "backprop", 1, wired=False)
# What a run does beside training is no part of its figures.
_BARE = ("--no-evaluate", "--no-checkpoint")


class Laboratory:
    """Where a bundle is measured.

    Args:
        bundle: its folder.
        plan: what is in it.
        scratch: folder for what runs write.
        seconds: that a run is to take.
        link: between the processes of wired variants; None: this machine's own.
        hosts: behind that link.
        nursery: where ranks are forked, which hosts need; None: torchrun starts them.
    """

    def __init__(
        self,
        bundle: Path,
        plan: Plan,
        scratch: Path,
        seconds: float,
        link: LinkSpec | None = None,
        hosts: Hosts | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self._bundle = settled(bundle.resolve(), scratch / "bundle")
        self._plan = plan
        self._scratch = scratch
        self._hosts = hosts
        self._nursery = nursery
        self._pace = Pace(seconds, link)

    def warm_up(self) -> None:
        """A short run that is not counted: what follows from it is how long the others are."""
        options = ["--epochs=1", f"--max-steps={FIRST_STEPS}"]
        self._pace.first(self._run(FIRST, options))

    def run(self, variant: Variant, trace: Path | None = None) -> Measured:
        """One run.

        Args:
            variant: what to run.
            trace: folder for the laps of its last steps.

        Raises:
            RankFault: it failed.
        """
        steps = self._pace.steps(variant, self.wire_bytes(variant))
        options = self._pace.options(steps)
        if trace is not None:
            options.append(f"--trace={trace}")
        found = self._run(variant, options)
        self._pace.note(variant, found, steps)
        return found

    def wire_bytes(self, variant: Variant) -> int:
        """Bytes that a step of a variant sends, by the plan."""
        return wire_bytes(variant, self._plan)

    def _run(self, variant: Variant, options: list[str]) -> Measured:
        out = self._scratch / "run"
        extra = [*_BARE, *options]
        if variant.microbatches is not None and variant.mode in MICROBATCHED:
            extra.append(f"--microbatches={variant.microbatches}")
        environment = {"OMP_NUM_THREADS": str(variant.threads)}
        started: dict[str, Any] = {
            "mode": variant.mode,
            "processes": variant.processes,
            "out": out,
            "pin": variant.threads == 1,
            "extra": extra,
            "environment": environment,
        }
        if self._nursery is not None:
            hosts = self._hosts if variant.wired else None
            self._nursery.launch(self._bundle, hosts=hosts, **started)
        else:
            launch(self._bundle, quiet=True, **started)
        return measured(read_metrics(out / METRICS_FILE), variant.mode)
