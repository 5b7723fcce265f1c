"""How many steps a run makes: as many as take a few seconds.

A prediction would do for the first run, if plans were always made for the machine that measures
them. They are not, so one short run of plain backprop comes first; it is not counted, and warms the
machine up. Every other way is taken to need what perfectly divided work needs, the time of its
bytes on the link and, if it waits for messages, a round trip for each microbatch and direction,
until it has been measured.
"""

from __future__ import annotations

from dnic.bench.linkspec import LinkSpec
from dnic.bench.measured import Measured
from dnic.bench.variant import Variant

# The stopwatch leaves the first third out, or eight steps where that is fewer: a window must have
# been filled by then. Where every step waits for the last one, the second is like all others.
FEWEST_STEPS, FEWEST_LOCKED_STEPS, MOST_STEPS = 15, 8, 1000
FIRST_STEPS = 8
# Families of ways that go on while messages travel.
_UNLOCKED = ("stale", "decoupled", "ceiling")


class Pace:
    """What is known of the steps' times.

    Args:
        seconds: that a run is to take.
        link: between the processes; None: this machine's own.
    """

    def __init__(self, seconds: float, link: LinkSpec | None) -> None:
        self._seconds = seconds
        self._link = link
        self._backprop_us = 0.0
        self._known_us: dict[str, float] = {}
        self._epoch_steps: int | None = None

    def first(self, run: Measured) -> None:
        """Takes note of the run that comes first, of `FIRST_STEPS` steps."""
        self._backprop_us = max(run.step_us)
        if run.steps < FIRST_STEPS:
            self._epoch_steps = run.steps

    def note(self, variant: Variant, run: Measured, asked: int) -> None:
        """Takes note of a run; one of fewer steps than asked has shown how long an epoch is."""
        self._known_us[variant.name] = max(run.step_us)
        if run.steps < asked and self._epoch_steps is None:
            self._epoch_steps = run.steps

    def steps(self, variant: Variant, wire_bytes: int) -> int:
        """Steps of the next run."""
        step_us = self._known_us.get(variant.name)
        if step_us is None:
            workers = max(variant.processes, variant.threads)
            step_us = self._backprop_us / workers + self._wire_us(variant, wire_bytes)
        fewest = FEWEST_STEPS if variant.family in _UNLOCKED else FEWEST_LOCKED_STEPS
        return min(max(round(self._seconds * 1e6 / step_us), fewest), MOST_STEPS)

    def options(self, steps: int) -> list[str]:
        """Options of `train.py` for so many steps; whole epochs where one is shorter."""
        if self._epoch_steps is None or steps <= self._epoch_steps:
            return ["--epochs=1", f"--max-steps={steps}"]
        return [f"--epochs={-(-steps // self._epoch_steps)}"]

    def _wire_us(self, variant: Variant, wire_bytes: int) -> float:
        if self._link is None or not variant.wired:
            return 0.0
        # Half of it each way, at the same time.
        bytes_us = wire_bytes / 2 / self._link.rate_bytes_per_s * 1e6
        if variant.family in _UNLOCKED:
            return bytes_us
        return bytes_us + 4 * (variant.microbatches or 1) * self._link.delay_us
