"""Model to fx graph: capture by recording, original names kept."""

from dnic.trace.align import BatchSize, ModeSwitch
from dnic.trace.capture import (
    TracedModel,
    capture_coarse,
    capture_fine,
    grown,
    opened_by,
    untouched,
)
from dnic.trace.functions import qualified_name
from dnic.trace.recorded import Recorded, recorded
from dnic.trace.recording import item

__all__ = [
    "BatchSize",
    "ModeSwitch",
    "Recorded",
    "TracedModel",
    "capture_coarse",
    "capture_fine",
    "grown",
    "item",
    "opened_by",
    "qualified_name",
    "recorded",
    "untouched",
]
