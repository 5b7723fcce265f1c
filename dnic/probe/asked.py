"""What is asked of a probe, and what a person types for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnic.errors import SpecError
from dnic.probe.predictors import SOURCES, known_sources
from dnic.spec.nearest import nearest

STEPS = 200
MOST_CUTS = 16
LATENESSES = (1, 4, 16)
MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and for how long.

    Attributes:
        steps: of training; figures are of the last half of them.
        cuts: names of cuts; None to choose them.
        most_cuts: how many to choose; None for all that there are.
        sources: of `known_sources()`.
        latenesses: steps after which a true gradient is there, ascending, each at least 1.
        seconds: after which no further step is begun; None for no limit.
        memory_bytes: that activations and gradients may take which wait to be learnt from.
    """

    steps: int = STEPS
    cuts: tuple[str, ...] | None = None
    most_cuts: int | None = MOST_CUTS
    sources: tuple[str, ...] = SOURCES
    latenesses: tuple[int, ...] = LATENESSES
    seconds: float | None = None
    memory_bytes: int = MEMORY_BYTES


def asked_of(
    *,
    steps: int = STEPS,
    cuts: str | None = None,
    every: bool = False,
    sources: str | None = None,
    lateness: str | None = None,
    seconds: float | None = None,
    memory_gib: float = 1.0,
) -> Asked:
    """What a command line asks for.

    Args:
        steps, seconds: as `Asked`.
        cuts, sources, lateness: as typed.
        every: `--all`: every cut.
        memory_gib: as `Asked`, in GiB.

    Raises:
        SpecError: there is no such source, or a list is none.
    """
    if every and cuts is not None:
        raise SpecError(
            "--all and --cuts contradict each other", where="--cuts", expected="one of the two"
        )
    names, most = parse_cuts(cuts)
    return Asked(
        steps=steps,
        cuts=names,
        most_cuts=None if every else most,
        sources=parse_sources(sources),
        latenesses=parse_latenesses(lateness),
        seconds=seconds,
        memory_bytes=round(memory_gib * 2**30),
    )


def parse_cuts(text: str | None) -> tuple[tuple[str, ...] | None, int]:
    """`8` for so many at most, or `layers.0,layers.2` for these.

    Returns:
        The names, or None; and how many at most.

    Raises:
        SpecError: there would be none.
    """
    if text is None:
        return None, MOST_CUTS
    words = _words(text, "--cuts", "a number of at least 1, or names of modules: layers.0,layers.2")
    if len(words) == 1 and words[0].isdecimal() and int(words[0]) > 0:
        return None, int(words[0])
    if "0" in words:
        raise SpecError("no cut asked for", where="--cuts", expected="at least 1")
    return tuple(words), len(words)


def parse_sources(text: str | None) -> tuple[str, ...]:
    """`synthetic,stale`; `SOURCES` when nothing was typed.

    Raises:
        SpecError: there is no such source.
    """
    if text is None:
        return SOURCES
    known = known_sources()
    words = _words(text, "--sources", f"some of {', '.join(known)}")
    for word in words:
        if word not in known:
            raise SpecError(
                f"there is no source of gradients called {word!r} to probe",
                where="--sources",
                expected=f"some of {', '.join(known)}",
                hint=nearest(word, known),
            )
    return tuple(words)


def parse_latenesses(text: str | None) -> tuple[int, ...]:
    """`1,4,16` as numbers, ascending.

    Raises:
        SpecError: one of them is no whole number of at least 1.
    """
    if text is None:
        return LATENESSES
    words = _words(text, "--lateness", "whole numbers of at least 1, such as 1,4,16")
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise SpecError(
            f"{text!r} is no list of latenesses",
            where="--lateness",
            expected="whole numbers of at least 1, such as 1,4,16",
        )
    return tuple(sorted(set(map(int, words))))


def _words(text: str, where: str, expected: str) -> Sequence[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(words):
        raise SpecError(f"{text!r} is no list", where=where, expected=expected)
    return words
