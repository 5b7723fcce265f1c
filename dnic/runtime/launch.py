"""Starts a bundle on this machine, as `dnic train` does, and tells how it ended.

`python -m torch.distributed.run` does the starting. This adds the exact command for people, what
`failure.json` says as one error with the failed rank's own traceback and exit status, and an end
of every child process whatever happens. For several machines call torchrun there yourself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import PLAN_FILE, read_plan
from dnic.runtime.failure import FAILURE_FILE, LAUNCHED, read_failure
from dnic.runtime.metrics import RESULT_FILE
from dnic.runtime.plan import Mode, Plan

_END_S = 10.0
_TAIL_LINES = 40
# Where torchrun logs from once a process has failed.
_AGENT = "torch/distributed/elastic/multiprocessing/api.py"


class RankFault(RuntimeFault):
    """A process of a run failed.

    Attributes:
        rank: which; None when torchrun itself failed.
        report: that process's traceback, or its message where the user made a mistake.
        exit_status: of that process.
    """

    def __init__(self, problem: str, *, rank: int | None, report: str, exit_status: int) -> None:
        super().__init__(problem)
        self.rank = rank
        self.report = report
        self.exit_status = exit_status

    def __str__(self) -> str:
        return self.report.rstrip() + f"\n{super().__str__()}" if self.report else super().__str__()


@dataclass(frozen=True)
class LaunchResult:
    """A run that went well.

    Attributes:
        run_dir: folder with metrics, checkpoints and the result.
        result: content of `result.json`.
        command: the plain command that does the same.
    """

    run_dir: Path
    result: dict[str, Any]
    command: str


def launch(
    bundle_dir: Path,
    *,
    epochs: int | None = None,
    mode: Mode | None = None,
    processes: int | None = None,
    out: Path | None = None,
    seed: int | None = None,
    pin: bool = False,
    quiet: bool = False,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> LaunchResult:
    """Trains a bundle on this machine and waits for the end.

    Args:
        bundle_dir: the bundle.
        epochs, mode, seed: as for `train.py`; None takes the plan's.
        processes: how many to start; None takes the plan's. Only `ddp` runs on any number.
        out: folder of the run; `runs/MODE` inside the bundle by default.
        pin: whether each process gets a core of its own and one thread.
        quiet: whether no progress is shown.
        extra: further options of `train.py`.
        environment: further environment variables of the processes.

    Raises:
        RankFault: a process failed.
        RuntimeFault: this is no bundle.
    """
    bundle_dir = bundle_dir.resolve()
    plan = read_plan(bundle_dir / PLAN_FILE)
    mode = mode or plan.schedule.mode
    run_dir = (out or bundle_dir / "runs" / mode).resolve()
    arguments = [*_arguments(plan, epochs, mode, None if out is None else run_dir, seed), *extra]
    forget(run_dir)
    train = [str(bundle_dir / "train.py"), *arguments]
    command = [sys.executable, *_torchrun(processes or plan.processes(mode), mode), *train]
    variables = run_environment(pin=pin, quiet=quiet) | dict(environment or {})
    status, tail = _run(command, variables, run_dir)
    if status != 0:
        raise run_fault(run_dir, status, tail)
    result = json.loads((run_dir / RESULT_FILE).read_text(encoding="utf-8"))
    asked = torchrun_command(
        bundle_dir, epochs=epochs, mode=mode, processes=processes, out=out, seed=seed, extra=extra
    )
    return LaunchResult(run_dir, result, asked)


def torchrun_command(
    bundle_dir: Path,
    *,
    epochs: int | None = None,
    mode: Mode | None = None,
    processes: int | None = None,
    out: Path | None = None,
    seed: int | None = None,
    extra: Sequence[str] = (),
) -> str:
    """The shell command that trains a bundle without `dnic train`."""
    plan = read_plan(bundle_dir / PLAN_FILE)
    mode = mode or plan.schedule.mode
    script = [str(bundle_dir / "train.py"), *_arguments(plan, epochs, mode, out, seed), *extra]
    if mode == "backprop":
        return shlex.join(["python", *script])
    number = processes or plan.processes(mode)
    return shlex.join(["torchrun", "--standalone", f"--nproc-per-node={number}", *script])


def _arguments(
    plan: Plan, epochs: int | None, mode: Mode, out: Path | None, seed: int | None
) -> list[str]:
    arguments = [] if mode == plan.schedule.mode else [f"--mode={mode}"]
    for name, value in (("epochs", epochs), ("out", out), ("seed", seed)):
        if value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


def _torchrun(processes: int, mode: Mode) -> list[str]:
    if mode == "backprop":
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def forget(run_dir: Path) -> None:
    """Removes what an earlier run in this folder left of its end."""
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)
    (run_dir / RESULT_FILE).unlink(missing_ok=True)


def run_environment(*, pin: bool, quiet: bool) -> dict[str, str]:
    """The environment of a run's processes, or of the torchrun that starts them."""
    # One thread per process, as torchrun sets it; here so that backprop, which runs without
    # torchrun, is given the same.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, LAUNCHED: "1"}
    if pin:
        environment["DNIC_PIN"] = "1"
    if quiet:
        environment["DNIC_PROGRESS"] = "none"
    return environment


def _run(command: list[str], environment: dict[str, str], run_dir: Path) -> tuple[int, str]:
    """Runs to the end; returns the exit status and the end of what was written to stderr."""
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    tail: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(process.stderr, run_dir, tail), daemon=True)
    reader.start()
    try:
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    reader.join(_END_S)
    return status, "".join(tail)


def _pass_on(stream: IO[str], run_dir: Path, tail: list[str]) -> None:
    """Shows what processes write to stderr, until one fails: then `RankFault` says it better."""
    over = False
    with stream:
        for text in stream:
            tail.append(text)
            del tail[:-_TAIL_LINES]
            over = over or _AGENT in text or (run_dir / FAILURE_FILE).exists()
            if not over:
                sys.stderr.write(text)
                sys.stderr.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """Ends torchrun, which ends its children when asked to."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_fault(run_dir: Path, status: int, tail: str) -> RankFault:
    """What a run failed of: its own report, or what torchrun wrote last."""
    failure = read_failure(run_dir)
    if failure is not None:
        report = failure["message"] if failure["user_error"] else failure["traceback"]
        stage = "" if failure["stage"] is None else f" (stage {failure['stage']})"
        return RankFault(
            f"rank {failure['rank']}{stage} failed",
            rank=failure["rank"],
            report=report,
            exit_status=failure["exit_status"],
        )
    ended = re.findall(r"rank\s*: (\d+).*\n\s*exitcode\s*: (-?\d+)", tail)
    if ended:
        rank, code = map(int, ended[-1])  # torchrun names the root cause last
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return RankFault(
            f"rank {rank} was ended {how} and left no report",
            rank=rank,
            report="",
            exit_status=128 - code if code < 0 else code,
        )
    return RankFault(
        f"the run ended with status {status}", rank=None, report=tail, exit_status=status
    )
