"""Model to fx graph: capture by recording, original names kept."""

from dnic.trace.align import BatchShare, BatchSize, ModeSwitch
from dnic.trace.capture import TracedModel, capture_coarse, capture_fine, opened_by
from dnic.trace.foreign import seeded
from dnic.trace.functions import draws, qualified_name
from dnic.trace.inputs import fresh, grown
from dnic.trace.recorded import Recorded, recorded, storage_key, tensors_in
from dnic.trace.recording import field_of, item
from dnic.trace.state import untouched

__all__ = [
    "BatchShare",
    "BatchSize",
    "ModeSwitch",
    "Recorded",
    "TracedModel",
    "capture_coarse",
    "capture_fine",
    "draws",
    "field_of",
    "fresh",
    "grown",
    "item",
    "opened_by",
    "qualified_name",
    "recorded",
    "seeded",
    "storage_key",
    "tensors_in",
    "untouched",
]
