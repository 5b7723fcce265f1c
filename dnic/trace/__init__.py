"""Model to fx graph: capture by recording, original names kept."""

from dnic.trace.align import BatchShare, BatchSize, ModeSwitch
from dnic.trace.capture import TracedModel, capture_coarse, capture_fine, has_own_loss, opened_by
from dnic.trace.foreign import seeded
from dnic.trace.functions import draws, qualified_name, source_name
from dnic.trace.inputs import fresh, grown, to_meta
from dnic.trace.merge import select
from dnic.trace.recorded import Recorded, leaves, recorded, storage_key, tensors_in
from dnic.trace.recording import field_of, item
from dnic.trace.settings import as_compilers_see_it, without_cache
from dnic.trace.state import untouched

__all__ = [
    "BatchShare",
    "BatchSize",
    "ModeSwitch",
    "Recorded",
    "TracedModel",
    "as_compilers_see_it",
    "capture_coarse",
    "capture_fine",
    "draws",
    "field_of",
    "fresh",
    "grown",
    "has_own_loss",
    "item",
    "leaves",
    "opened_by",
    "qualified_name",
    "recorded",
    "seeded",
    "select",
    "source_name",
    "storage_key",
    "tensors_in",
    "to_meta",
    "untouched",
    "without_cache",
]
