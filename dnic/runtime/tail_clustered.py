"""Cross-entropy in two levels: which cluster a class is in, then which of its classes it is.

For large vocabularies, beside `dnic.runtime.tail_sampled`: torch's `AdaptiveLogSoftmaxWithLoss`
(Grave et al. 2017, arXiv 1609.04309). The most frequent classes are told apart at once; the others
lie in clusters, each behind a low-rank map that gets narrower with how rare its classes are, and is
computed for the rows alone whose target lies there. Nothing is drawn and every class is scored, so
that the gradient has no noise. For 50,000 words and 256 features it has an eighteenth of a full
layer's parameters; what it costs follows from how the targets are spread, for words it is a few
times what a sample of 512 costs.

torch wants classes in the order of their frequency. Which ones are frequent is counted in the first
batches that are learnt from, and classes are put in that order anew at the first, second, fourth,
... 64th of them; then the order stays. What a place had learnt until then its next class takes
over. On CUDA finding the rows of a cluster waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnic.runtime.head_layout import Layout
from dnic.runtime.tail_aim import Aim
from dnic.runtime.tail_ending import Ending, scored_rows

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

# Classes that are told apart at once; each cluster ends at so many times as many classes.
SHORTLIST, GROWTH = 512, 6
COUNTED_BATCHES = 64
# What a class's cluster is told from at least.
_NARROWEST = 4


class ClusteredEnding(Ending):
    """Log probabilities of clusters, and of the classes in them.

    Args:
        features: F.
        aim: classes, and the targets' shape; where samples have several targets these share one
            answer.
        layout: of the positions that have targets; None where samples have.
        dtype: of the parameters.
    """

    often: Tensor
    place: Tensor

    def __init__(self, features: int, aim: Aim, layout: Layout | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._classes = aim.classes
        self._positions = layout.positions if layout is not None else ()
        cutoffs = cluster_ends(aim.classes)[:-1]
        narrowing = narrowing_of(features, len(cutoffs))
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            features, aim.classes, cutoffs, narrowing, head_bias=True, dtype=dtype
        )
        self.register_buffer("often", torch.zeros(aim.classes, dtype=dtype))
        self.register_buffer("place", torch.arange(aim.classes))
        self._batches = 0

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """Of every target that is a class; 0 where none is."""
        z, index, valid = scored_rows(z, target, self._positions, self._classes)
        known = self.softmax(z, self.place[index]).output
        loss: Tensor = -(known * valid).sum() / valid.sum().clamp(min=1)
        return loss

    @torch.no_grad()
    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Counts the classes of the first batches, and puts them in order."""
        if self._batches == COUNTED_BATCHES:
            return
        self._batches += 1
        index = target.long().flatten()
        valid = (index >= 0) & (index < self._classes)
        given = valid.to(self.often.dtype)
        counts = torch.zeros_like(self.often).scatter_add_(0, index.where(valid, 0), given)
        counts = counts / index.numel()
        self.often += counts if average is None else average(counts)
        if self._batches & (self._batches - 1) == 0:  # a power of two
            order = self.often.argsort(descending=True, stable=True)
            self.place[order] = torch.arange(self._classes, device=order.device)

    def settle(self) -> None:
        """The order of the classes stays."""
        self._batches = COUNTED_BATCHES

    def get_extra_state(self) -> Any:
        """How many batches have been counted."""
        return self._batches

    def set_extra_state(self, state: Any) -> None:
        """Goes on counting where `get_extra_state` was called."""
        self._batches = int(state)


def cluster_ends(classes: int) -> list[int]:
    """Where the shortlist and each cluster end, in the order of frequency; at least 3 classes."""
    if classes <= 4 * SHORTLIST:
        return [max(1, classes // 4), max(2, classes // 2), classes]
    ends, end = [], SHORTLIST
    while end < classes / 2:
        ends.append(end)
        end *= GROWTH
    return [*ends, classes]


def narrowing_of(features: int, clusters: int) -> float:
    """How many times narrower each cluster's map is than the one before it: 4, where that fits."""
    return next(n for n in (4.0, 2.0, 1.0) if n == 1 or features >= _NARROWEST * n**clusters)
