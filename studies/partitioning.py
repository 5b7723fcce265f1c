"""How long the exact partition solver takes, for chains and fleets of many sizes.

    python -m studies.partitioning

writes docs/partitioning.json, docs/partitioning.md and docs/partitioning.svg. The chains are
random, from a seed: every gap may be cut, memory limits bind (operations hold the more memory the
later they run, so that stages of equal time do not fit), each cut has a cost and a preference.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np

from dnic import __version__
from dnic.partition.exact import DeviceClass, Option, Problem, solve_exact

ROOT = Path(__file__).parent.parent
COMMAND = "python -m studies.partitioning"
SEEDS = (0, 1, 2)
REPEATS = 2
OPERATIONS = (100, 300, 1000, 3000, 10_000)
DEVICES = (2, 4, 8, 16, 32, 64)
POWERS = tuple(2**k for k in range(10))


@dataclass(frozen=True)
class Case:
    """A kind of problem.

    Attributes:
        name: for the table.
        operations: length of the chain.
        fleet: devices of each class; class k has speed 1 + k.
        given: as many stages as devices are asked for; else the solver chooses.
        replicas: how many a stage may have.
        limited: whether memory limits bind.
        choice: whether a cut may be locked, or decoupled at a penalty.
    """

    name: str
    operations: int
    fleet: tuple[int, ...]
    given: bool = False
    replicas: tuple[int, ...] = (1,)
    limited: bool = True
    choice: bool = False


@dataclass(frozen=True)
class Timing:
    """One problem solved.

    Attributes:
        seconds: the quickest of the repeats.
        stages: of the solution.
        bound: whether the memory limits made the step longer.
        above: objective of the solution over the optimum, less 1.
        exact: whether every order of the devices was searched.
    """

    case: Case
    seed: int
    seconds: float
    stages: int
    bound: bool
    above: float
    exact: bool


def cases() -> list[Case]:
    """All kinds of problems, the grid first."""
    grid = [
        Case("one class", n, (d,), given)
        for n in OPERATIONS
        for d in DEVICES
        for given in (False, True)
        if d < n
    ]
    return [
        *grid,
        Case("two classes", 1000, (8, 8)),
        Case("two classes", 10_000, (8, 8)),
        Case("four classes, grouped", 1000, (8, 8, 8, 8)),
        Case("replicas", 3000, (64,), replicas=POWERS[:7], limited=False),
        Case("replicas", 3000, (512,), replicas=POWERS, limited=False),
        Case("locked or decoupled", 1000, (8,), choice=True),
        Case("locked or decoupled", 1000, (16,), choice=True),
        Case("locked or decoupled, replicas", 1000, (16,), replicas=POWERS[:5], choice=True),
    ]


def problem(case: Case, seed: int) -> Problem:
    """A random problem of a kind."""
    pick = Random(seed)
    n, devices = case.operations, sum(case.fleet)
    times = tuple(pick.uniform(1, 100) for _ in range(n))
    held = tuple(int(pick.randint(1, 1000) * (1 + 2 * i / n)) for i in range(n))
    after = tuple(pick.randint(0, 2000) for _ in range(n + 1))
    limit = int(1.1 * sum(held) / devices) + 6000 if case.limited else None
    heads = tuple(pick.uniform(5, 50) for _ in range(n + 1))
    options: tuple[Option, ...] = (Option("decoupled", before_us=heads),)
    if case.choice:
        units = tuple(pick.choice((20, 50)) for _ in range(n + 1))
        options = (Option("exact", locked=True), replace(options[0], penalty_units=units))
    classes = len(case.fleet)
    return Problem(
        times_us=times,
        candidates=tuple(range(1, n)),
        devices=tuple(DeviceClass(count, 1.0 + k, limit) for k, count in enumerate(case.fleet)),
        options=options,
        stages=devices if case.given else None,
        replica_counts=case.replicas,
        bandwidth=((1e10,) * classes,) * classes,
        latency_us=((10.0,) * classes,) * classes,
        reduce_us_per_byte=(1e-3,) * classes,
        reduce_latency_us=(1.0,) * classes,
        parameter_bytes=held,
        parameter_memory=held,
        after_bytes=after,
        message_us=tuple(pick.uniform(1, 30) for _ in range(n + 1)),
        nbytes=tuple(pick.randint(1, 10**6) for _ in range(n + 1)),
        back_nbytes=tuple(pick.randint(1, 10**6) for _ in range(n + 1)),
        preferences=tuple((pick.randint(0, 3), pick.randint(0, 10**6)) for _ in range(n + 1)),
    )


def timed(case: Case, seed: int) -> Timing:
    """Solve a problem several times."""
    chain = problem(case, seed)
    seconds = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        solution = solve_exact(chain)
        seconds = min(seconds, time.perf_counter() - start)
    free = tuple(replace(one, memory_bytes=None) for one in chain.devices)
    unlimited = solve_exact(replace(chain, devices=free)) if case.limited else solution
    return Timing(
        case,
        seed,
        round(seconds, 4),
        len(solution.partition.placement),
        solution.optimum > unlimited.optimum * (1 + 1e-6),
        solution.objective / solution.optimum - 1,
        solution.exact,
    )


def table(timings: list[Timing], load: float) -> str:
    """The page: slowest of the seeds for each kind of problem; the load of the machine before."""
    slowest = _slowest(timings)
    lines = [
        "# How long the exact partition takes",
        "",
        f"Measured with `{COMMAND}`, which says how the chains are made; the figures are in",
        "`partitioning.json`. Seconds of the slowest of "
        f"{len(SEEDS)} random chains, each the quicker of {REPEATS} runs, on one core.",
        f"Other work ran beside it (load {load:.1f} on {os.cpu_count()} cores): an upper bound.",
        "Every run finds the optimum, then tidies: fewest stages and best liked cuts within 6 %.",
        "",
        "One class of devices, memory limits that bind; number of stages left to the solver /",
        "given, one per device:",
        "",
        "| operations | " + " | ".join(f"{d} devices" for d in DEVICES) + " |",
        "|---|" + "---|" * len(DEVICES),
    ]
    for n in OPERATIONS:
        cells = []
        for d in DEVICES:
            pair = [slowest.get(Case("one class", n, (d,), given)) for given in (False, True)]
            cells.append(" / ".join("-" if one is None else f"{one.seconds:.2f}" for one in pair))
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Other problems, number of stages left to the solver:",
        "",
        "| problem | operations | devices | replicas | seconds | stages | every order searched |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, one in slowest.items():
        if case.name != "one class":
            replicas = "1" if case.replicas == (1,) else f"1, 2, ... {case.replicas[-1]}"
            fleet = " + ".join(str(count) for count in case.fleet)
            lines.append(
                f"| {case.name} | {case.operations:,} | {fleet} | {replicas} | {one.seconds:.2f} "
                f"| {one.stages} | {'yes' if one.exact else 'no'} |"
            )
    bound = [t for t in timings if t.case.name == "one class"]
    worst = max(t.above for t in timings)
    lines += [
        "",
        f"The memory limits made the step longer in {sum(t.bound for t in bound)} of the "
        f"{len(bound)} problems on one class. No objective was more than {worst:.1%} above its",
        "optimum. Where the orders of the devices are too many (the counts of the classes, each",
        "plus one, multiply to more than 5,000), the devices of a class follow one another.",
        "",
        "![seconds by operations, a line for each number of devices](partitioning.svg)",
        "",
    ]
    return "\n".join(lines)


def drawing(timings: list[Timing]) -> str:
    """Seconds by operations, both logarithmic, a line for each number of devices, as svg."""
    slowest = _slowest(timings)
    width, height, left, right, margin = 640, 400, 70, 110, 45
    seconds = [one.seconds for case, one in slowest.items() if case.name == "one class"]
    low, high = 10 ** np.floor(np.log10(min(seconds))), 10 ** np.ceil(np.log10(max(seconds)))

    def across(n: float) -> float:
        share = np.log(n / OPERATIONS[0]) / np.log(OPERATIONS[-1] / OPERATIONS[0])
        return round(float(left + share * (width - left - right)), 1)

    def down(s: float) -> float:
        share = np.log(s / low) / np.log(high / low)
        return round(float(height - margin - share * (height - 2 * margin)), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14">Seconds to solve, one class of devices, memory '
        "limits</text>",
    ]
    for n in OPERATIONS:
        x = across(n)
        parts.append(f'<path d="M{x} {down(low)}V{down(high)}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 25}" text-anchor="middle">{n:,}</text>')
    tick = low
    while tick <= high * 1.001:
        y = down(tick)
        parts.append(f'<path d="M{left} {y}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{tick:g} s</text>')
        tick *= 10
    for index, d in enumerate(DEVICES):
        colour = f"hsl({220 - 40 * index},70%,42%)"
        ends = [
            (across(n), down(slowest[case].seconds))
            for n in OPERATIONS
            if (case := Case("one class", n, (d,))) in slowest
        ]
        path = "M" + "L".join(f"{x} {y}" for x, y in ends)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = ends[-1]
        parts.append(f'<text x="{x + 6}" y="{y + 4}" fill="{colour}">{d} devices</text>')
    middle = left + (width - left - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 7}" text-anchor="middle">operations</text>')
    return "\n".join([*parts, "</svg>", ""])


def _slowest(timings: list[Timing]) -> dict[Case, Timing]:
    slowest: dict[Case, Timing] = {}
    for one in timings:
        if one.case not in slowest or one.seconds > slowest[one.case].seconds:
            slowest[one.case] = one
    return slowest


def main() -> None:
    """Measure everything and write the three files."""
    load = os.getloadavg()[0]
    timings = []
    for case in cases():
        for seed in SEEDS:
            timings.append(timed(case, seed))
        print(asdict(timings[-1]), flush=True)
    result = {
        "command": COMMAND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dnic": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "seeds": SEEDS,
        "repeats": REPEATS,
        "timings": [asdict(one) for one in timings],
    }
    docs = ROOT / "docs"
    (docs / "partitioning.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (docs / "partitioning.md").write_text(table(timings, load), "utf-8")
    (docs / "partitioning.svg").write_text(drawing(timings), "utf-8")


if __name__ == "__main__":
    main()
