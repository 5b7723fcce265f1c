"""The goals of the study, each judged from what was measured: met, missed, or not run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studies.learning.best import of_sources, ranked
from studies.learning.clock import LINK_GOALS, races
from studies.learning.figures import NONE, families_in, short_words
from studies.learning.links import LINKS
from studies.learning.parts import FAR, Family
from studies.learning.quality import Done, by_seed, select, shortfall
from studies.learning.sources import LATE, SOURCES

POINTS = 0.3
SHARES = {2: 0.02, 4: 0.04}
LEAST_STEPS = 3_000


@dataclass(frozen=True)
class Judged:
    """One figure beside its goal; `met` is None where there is no goal to meet."""

    words: str
    met: bool | None = None

    def __str__(self) -> str:
        if self.met is None:
            return self.words
        return f"**{self.words}**" if self.met else f"{self.words} (missed)"


# What, the goal, and what was measured of it, each with a name.
Goal = tuple[str, str, list[tuple[str, Judged]]]


def goals(runs: Sequence[Done]) -> Iterator[tuple[str, str, str]]:
    """What, the goal, and what was measured of it, in words."""
    for what, goal, found in _judged(runs):
        yield what, goal, _joined(found) or NONE


def missed(runs: Sequence[Done]) -> list[str]:
    """The goals of which something was missed, and that alone."""
    lines = []
    for what, goal, found in _judged(runs):
        left = [(name, one) for name, one in found if one.met is False]
        if left:
            lines.append(f"{what} ({goal}): {_joined(left)}")
    return lines


def _judged(runs: Sequence[Done]) -> Iterator[Goal]:
    yield (
        "classification, best source at lateness 1, K = 2, 4, 6",
        f"within {POINTS} point of backprop at equal epochs",
        list(_classification(runs)),
    )
    for stages, share in SHARES.items():
        yield (
            f"causal transformer, best source at lateness 1, K = {stages}",
            f"within {share:.0%} of backprop's bits per character, {LEAST_STEPS:,} steps or more",
            list(_transformer(runs, stages, share)),
        )
    yield f"lateness {FAR}, best head against stale", "better", list(_late(runs))
    yield "any run with the guard", "never worse than no gradient", list(_guarded(runs))
    for link, most in LINK_GOALS.items():
        yield (
            f"time to backprop's final quality over the fastest exact way, {LINKS[link].title}",
            f"at most {most}",
            list(_timed(runs, link, most)),
        )


def _joined(found: Sequence[tuple[str, Judged]]) -> str:
    return "; ".join(f"{name}: {judged}" for name, judged in found)


def best_at(
    runs: Sequence[Done], family: Family, stages: int, lateness: int, without: Sequence[str] = ()
) -> tuple[str, list[Done]] | None:
    """The best source of part 2 at a lateness, and its runs."""
    here = of_sources(runs, family, stages)
    found = ranked(here, lateness, without)
    if not found:
        return None
    name = found[0][0]
    window = lateness if SOURCES[name].lateness_matters else 1
    return name, select(here, source=name, window=window)


def backprop(runs: Sequence[Done], family: Family) -> list[Done]:
    """The runs of part 2 that are plain backprop."""
    return select(of_sources(runs, family, 2), source="exact")


def _classification(runs: Sequence[Done]) -> Iterator[tuple[str, Judged]]:
    for family in families_in(runs, part="sources"):
        if family[1] == "characters":
            continue
        for stages in (2, 4, 6):
            found = best_at(runs, family, stages, 1)
            short = shortfall(found[1], backprop(runs, family)) if found else None
            if found and short is not None:
                words = f"{short_words(short, family)} ({SOURCES[found[0]].title})"
                yield f"{_brief(family)} K = {stages}", Judged(words, short <= POINTS)


def _transformer(runs: Sequence[Done], stages: int, share: float) -> Iterator[tuple[str, Judged]]:
    for family in families_in(runs, part="sources", model="characters"):
        found = best_at(runs, family, stages, 1)
        short = shortfall(found[1], backprop(runs, family)) if found else None
        if found and short is not None:
            enough = found[1][0].run.steps >= LEAST_STEPS
            words = f"{short_words(short, family)} ({SOURCES[found[0]].title})"
            words += "" if enough else f" after {found[1][0].run.steps:,} steps"
            yield f"{family[2]} blocks", Judged(words, short <= share and enough)


def _late(runs: Sequence[Done]) -> Iterator[tuple[str, Judged]]:
    for family in families_in(runs, part="sources"):
        for stages in (2, 4, 6):
            heads = best_at(runs, family, stages, FAR, without=(*LATE, "none"))
            here = of_sources(runs, family, stages)
            stale = [entry for entry in ranked(here, FAR) if entry[0] in LATE]
            if heads is None or not stale:
                continue
            both = by_seed(heads[1])
            late = select(here, source=stale[0][0], window=FAR)
            ahead = shortfall([found for found in late if found.run.seed in both], heads[1])
            if ahead is not None:
                by = short_words(abs(ahead), family)
                words = f"{by} {_sides(ahead)} ({SOURCES[heads[0]].title})"
                yield f"{_brief(family)} K = {stages}", Judged(words, ahead > 0)


def _guarded(runs: Sequence[Done]) -> Iterator[tuple[str, Judged]]:
    for family in families_in(runs, part="sources", guard=True):
        worst, count = None, 0
        for found in select(runs, part="sources", guard=True):
            run = found.run
            if (run.data, run.model, run.layers, run.width) != family:
                continue
            without = of_sources(runs, family, run.stages)
            nothing = by_seed(select(without, source="none"))
            if run.seed not in nothing:
                continue
            ours = found.final
            sign = 1 if run.classifies else -1
            ahead = float("-inf") if ours is None else sign * (ours - nothing[run.seed])
            worst, count = min(ahead, ahead if worst is None else worst), count + 1
        if worst is not None:
            unit = "bits" if family[1] == "characters" else "points"
            words = f"worst of {count} runs {abs(worst):.2f} {unit} {_sides(worst)}"
            yield _brief(family), Judged(words, worst >= 0)


def _timed(runs: Sequence[Done], link: str, most: float) -> Iterator[tuple[str, Judged]]:
    for race in races(runs):
        if race.link != link:
            continue
        exact, ours, ratio = race.fastest(exact=True), race.fastest(exact=False), race.ratio
        if exact is not None and ours is not None and ratio is not None:
            met = ratio <= most
            # Where two digits say otherwise three do not.
            digits = 2 if met == (round(ratio, 2) <= most) else 3
            words = f"{ratio:.{digits}f}, {ours.words} against {exact.words}"
            yield _brief(race.family), Judged(words, met)
        elif race.judged:
            yield _brief(race.family), Judged("never reached", False)


def _sides(ahead: float) -> str:
    return "better" if ahead >= 0 else "worse"


def _brief(family: Family) -> str:
    words = {"connected": "fully connected", "characters": f"transformer of {family[2]} blocks"}
    return words.get(family[1], family[1])
