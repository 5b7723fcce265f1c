"""From what pydantic found to the errors that a user reads.

pydantic reports every problem with a location and a message about types. A person wants the line in
the file, the key as it is written there and the nearest key that exists, all problems at once and
in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from types import NoneType
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dnic.errors import SpecError
from dnic.spec.expect import COMPLAINT, shown
from dnic.spec.nearest import nearest
from dnic.spec.origin import KeyPath, Origin, dotted
from dnic.spec.section import Section
from dnic.spec.spec import DEFAULT, InterfaceSpec, Spec

_MOST = 10


class SpecErrors(SpecError):
    """Everything that is wrong with one spec; its own attributes are those of the first problem."""

    def __init__(self, problems: Sequence[SpecError]) -> None:
        first = problems[0]
        super().__init__(first.problem, where=first.where, expected=first.expected, hint=first.hint)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        blocks = [SpecError.__str__(self), *map(str, self.problems[1:_MOST])]
        more = len(self.problems) - _MOST
        return "\n".join([*blocks, f"and {more} more"] if more > 0 else blocks)


def spec_errors(found: ValidationError, origin: Origin, at: KeyPath = ()) -> SpecErrors:
    """The problems that pydantic found in the section at `at`, in the order of the file."""
    placed = []
    for details in found.errors(include_url=False):
        path = (*at, *_path(details))
        placed.append((origin.line(path), _problem(details, path, origin.where(path))))
    placed.sort(key=lambda item: item[0])
    return SpecErrors([problem for _, problem in placed])


def _path(details: ErrorDetails) -> KeyPath:
    """Path of the value at fault. pydantic marks a bad key of a mapping by a last `[key]`."""
    path = details["loc"]
    if path and path[-1] == "[key]":
        path = path[:-1]
    return (*path, *details.get("ctx", {}).get("at", ()))


def _problem(details: ErrorDetails, path: KeyPath, where: str) -> SpecError:
    key = dotted(path) or "a spec"
    told = details.get("ctx", {})
    if details["type"] == COMPLAINT:
        sentence = told["sentence"].replace("{}", key, 1)
        return SpecError(sentence, where=where, expected=told["expected"], hint=told["hint"])
    if details["type"] == "extra_forbidden":
        keys = _KEYS.get(_general(path[:-1]), ())
        hint = nearest(path[-1], keys) or _elsewhere(path)
        expected = f"one of {', '.join(keys)}"
        return SpecError(f"unknown key {key}", where=where, expected=expected, hint=hint)
    if _general(path) in _KEYS:
        expected = f"a mapping; its keys: {', '.join(_KEYS[_general(path)])}"
        problem = f"{key} cannot be {shown(details['input'])}"
        return SpecError(problem, where=where, expected=expected)
    return SpecError(f"{key}: {details['msg']}", where=where)


def _elsewhere(path: KeyPath) -> str | None:
    """Path of the key of that name in another section: the one that shares the longest start."""
    homes = [(*at, key) for at, keys in _KEYS.items() for key in keys if key == path[-1]]
    if not homes:
        return None
    home = max(homes, key=lambda home: _shared_start(home, path))
    if home[:1] == path[:1] == _INTERFACES and path[2:]:
        home = (*path[:2], *home[2:])
    return dotted(home)


def _shared_start(one: KeyPath, other: KeyPath) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _general(path: KeyPath) -> KeyPath:
    """The path with the name of an interface replaced by `default`: all have the same keys."""
    return (path[0], DEFAULT, *path[2:]) if path[:1] == _INTERFACES and path[1:] else path


def _sections(section: type[Section], at: KeyPath) -> Iterator[tuple[KeyPath, tuple[str, ...]]]:
    """Path and keys of a section and of those in it, keys as they are written in the file."""
    fields = {
        info.alias or name: _without_none(info.annotation)
        for name, info in section.model_fields.items()
    }
    yield at, tuple(fields)
    for key, kind in fields.items():
        if (*at, key) == _INTERFACES:
            yield _INTERFACES, (DEFAULT, "names of modules")
            yield from _sections(InterfaceSpec, (*_INTERFACES, DEFAULT))
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield from _sections(kind, (*at, key))


def _without_none(kind: object) -> object:
    """`X` of `X | None`; any other type as it is."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if len(parts) == 1 and NoneType in get_args(kind) else kind


_INTERFACES: KeyPath = ("interfaces",)
_KEYS: dict[KeyPath, tuple[str, ...]] = dict(_sections(Spec, ()))
