"""The ways to train a bundle that are measured side by side.

Each is a mode of `train.py` with its processes, microbatches and threads. What a bundle cannot run
is not passed over: it is named, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from dnic.errors import DnicError, SpecError
from dnic.runtime.chunks import LOOPED, takes_microbatches
from dnic.runtime.options import MICROBATCHED
from dnic.runtime.plan import Mode, Plan
from dnic.spec.nearest import nearest

# In the order in which they are measured; and those that every figure is compared with.
FAMILIES = (
    "backprop",
    "threads",
    "ddp",
    "naive",
    "gpipe",
    "1f1b",
    "interleaved",
    "zerobubble",
    "exact",
    "stale",
    "decoupled",
    "ceiling",
)
ALWAYS = ("backprop", "decoupled", "ceiling")
MICROBATCHES = (2, 4, 8)


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: the family's, with the microbatches where there are several: `gpipe-4`.
        family: of `FAMILIES`.
        mode: of `train.py`.
        processes: how many.
        microbatches: parts into which a batch is cut; None: as the plan has it.
        threads: of each process; one that has several is not pinned to a core.
        wired: whether its processes send one another anything during a step.
    """

    name: str
    family: str
    mode: Mode
    processes: int
    microbatches: int | None = None
    threads: int = 1
    wired: bool = True


@dataclass(frozen=True)
class LeftOut:
    """A way that is not measured, and why."""

    name: str
    reason: str


def parse_families(text: str) -> tuple[str, ...]:
    """`all`, or a list such as `ddp,1f1b`; `ALWAYS` are among them whatever is asked.

    Raises:
        SpecError: there is no such way.
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return FAMILIES
    for word in words:
        if word not in FAMILIES:
            raise SpecError(
                f"there is no way to train called {word!r}",
                where="--against",
                expected=f"all, or some of {', '.join(FAMILIES)}",
                hint=nearest(word, FAMILIES),
            )
    return tuple(family for family in FAMILIES if family in words or family in ALWAYS)


def parse_microbatches(text: str) -> tuple[int, ...]:
    """`2,4,8` as numbers.

    Raises:
        SpecError: one of them is no whole number of at least 2.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 2 for word in words):
        raise SpecError(
            f"{text!r} is no list of microbatches",
            where="--microbatches",
            expected="whole numbers of at least 2, such as 2,4,8",
        )
    return tuple(dict.fromkeys(map(int, words)))


def variants(
    plan: Plan, families: Sequence[str], microbatches: Sequence[int], cores: int
) -> tuple[list[Variant], list[LeftOut]]:
    """The ways that a bundle can run, and those that it cannot.

    Args:
        plan: of the bundle.
        families: that were asked for.
        microbatches: to try where batches are cut.
        cores: of this machine.
    """
    found: list[Variant] = []
    left_out: list[LeftOut] = []
    for family in FAMILIES:
        if family not in families:
            continue
        for entry in _family(family, plan, microbatches, cores):
            if isinstance(entry, Variant):
                found.append(entry)
            else:
                left_out.append(entry)
    return found, left_out


def _family(
    family: str, plan: Plan, microbatches: Sequence[int], cores: int
) -> Iterator[Variant | LeftOut]:
    stages, processes = len(plan.stages), plan.processes("exact")
    if family == "backprop":
        yield Variant(family, family, "backprop", 1, wired=False)
    elif family == "threads":
        yield _threads(cores)
    elif family == "ddp":
        copies = plan.processes("ddp")
        alone = LeftOut(family, "it takes two processes or more; the plan has one")
        yield alone if copies == 1 else Variant(family, family, "ddp", copies)
    elif stages == 1:
        yield LeftOut(family, "the plan has one stage")
    elif family == "ceiling":
        yield Variant(family, family, "alone", processes, wired=False)
    elif family == "naive":
        yield Variant(family, family, "exact", processes, microbatches=1)
    elif family == "stale":
        yield _stale(plan)
    elif family == "decoupled":
        yield _decoupled(plan)
    else:
        yield from _cut(family, plan, microbatches)


def _threads(cores: int) -> Variant | LeftOut:
    if cores == 1:
        return LeftOut("threads", "this machine has one core")
    return Variant("threads", "threads", "backprop", 1, threads=cores, wired=False)


def _stale(plan: Plan) -> Variant | LeftOut:
    if all(i.gradient == "exact" or not i.differentiable for i in plan.interfaces):
        return LeftOut("stale", "every gradient is awaited")
    return Variant("stale", "stale", "stale", plan.processes("stale"))


def _decoupled(plan: Plan) -> Variant | LeftOut:
    if all(i.gradient == "exact" or not i.differentiable for i in plan.interfaces):
        return LeftOut("decoupled", "no interface of the plan is decoupled; exact is the same")
    return Variant("decoupled", "decoupled", "decoupled", plan.processes("decoupled"))


def _cut(family: str, plan: Plan, microbatches: Sequence[int]) -> Iterator[Variant | LeftOut]:
    """The ways that cut a batch: torch's schedules and our own."""
    mode = cast("Mode", family)
    if mode not in MICROBATCHED:
        yield LeftOut(family, "this engine does not cut batches; naive is the same")
        return
    refusal = _refusal(mode, plan)
    if refusal is not None:
        yield LeftOut(family, refusal)
        return
    processes = _processes(mode, plan)
    for number in microbatches:
        name = f"{family}-{number}"
        reason = _unfit(mode, plan, processes, number)
        if reason:
            yield LeftOut(name, reason)
        else:
            yield Variant(name, family, mode, processes, microbatches=number)


def _processes(mode: Mode, plan: Plan) -> int:
    """One for each stage, unless the plan deals several out to each and the schedule may."""
    planned = plan.schedule
    if mode not in LOOPED or (planned.mode in LOOPED and planned.processes is not None):
        return plan.processes(mode)
    return len(plan.stages)


def _unfit(mode: Mode, plan: Plan, processes: int, number: int) -> str:
    """Why a schedule cannot run so many microbatches; empty where it can."""
    share = plan.train.batch_size // plan.replicas(mode)
    if share % number:
        return f"{number} does not divide the batch of {share}"
    if mode == "1f1b" and number < processes:
        return f"1F1B over {processes} stages takes {processes} microbatches or more"
    if mode in LOOPED and not (number >= processes and takes_microbatches(mode, processes, number)):
        return f"{number} microbatches do not fill rounds of {processes} processes"
    return ""


def _refusal(mode: Mode, plan: Plan) -> str | None:
    """Why torch's schedules cannot run the stages; None where they can."""
    if mode == "exact":
        return None
    if mode == "interleaved" and _processes(mode, plan) == len(plan.stages):
        return "the plan has one stage for each process; partition.schedule: interleaved deals two"
    from dnic.runtime.pipeline import check_chain, check_split

    try:
        check_chain(plan, mode)
        check_split(plan, mode)
    except DnicError as error:
        return error.problem
    return None
