"""What the next turns of a stage's interfaces depend on, kept and restored.

A turn is the beginning of a step at an interface with heads (`dnic.runtime.supervision`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dnic.runtime.sources import GradientSource


def turns_of(sources: Sequence[GradientSource]) -> dict[str, Any]:
    """The state of each interface with heads, by name."""
    return {
        source.plan.name: source.supervision.state_dict()
        for source in sources
        if source.supervision is not None
    }


def restore_turns(sources: Sequence[GradientSource], turns: Mapping[str, Any]) -> None:
    """Restores what `turns_of` returned; interfaces without an entry start anew."""
    for source in sources:
        if source.supervision is not None and source.plan.name in turns:
            source.supervision.load_state_dict(turns[source.plan.name])
