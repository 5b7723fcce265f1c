"""The base of every section of a spec, and laying one section over another.

pydantic alone does not merge: `model_copy(update=...)` replaces nested models whole. Which keys
were given, as opposed to left at their default, is pydantic's own `model_fields_set`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of the spec: frozen, no unknown keys; one without a value is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


S = TypeVar("S", bound=Section)


def overlay(below: S, above: S) -> S:
    """`below` with every key that was given in `above`, in nested sections too."""
    updates = {
        key: _merged(getattr(below, key, None), getattr(above, key))
        for key in above.model_fields_set
    }
    return below.model_copy(update=updates)


def _merged(below: Any, above: Any) -> Any:
    if isinstance(above, Section) and isinstance(below, Section):
        return overlay(below, above)
    if isinstance(above, dict) and isinstance(below, dict):
        return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    return above
