"""Cross-entropy against a sample of many classes: what a tail for a large vocabulary costs.

A full last layer for V classes costs as much as the model's own. Here every target is scored beside
the same few hundred classes, half of them drawn evenly, half from the batch's own targets (words
are as frequent among negatives as in the text). Logits of drawn classes are lowered by the
logarithm of how often they are expected to be drawn, and a target's own draw is left out (Bengio
and Senecal 2008, doi 10.1109/TNN.2007.912312; Jean et al. 2015, arXiv 1412.2007, section 3), so
that the expected sum over the sample is the sum over all classes. The gradient of its logarithm is
that of the full softmax but for an error that falls with the number of draws.

Only rows that were drawn or asked for get gradients, which are sparse: they need an optimizer that
takes such (`SparseAdam`). On CUDA that one waits for the device once a step.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.runtime.head_layout import Layout
from dnic.runtime.seeds import draw_seed
from dnic.runtime.tail_aim import Aim
from dnic.runtime.tail_ending import Ending, scored_rows

DRAWN = 512
_NEVER = -1e30


class SampledEnding(Ending):
    """Logits of each target and of classes that are drawn anew in every call.

    Args:
        features: F.
        aim: classes, and the targets' shape; where samples have several targets these share one
            answer.
        layout: of the positions that have targets; None where samples have.
        seed: of what is drawn.
        dtype: of the parameters.
        drawn: how many classes.
    """

    def __init__(
        self,
        features: int,
        aim: Aim,
        layout: Layout | None,
        seed: int,
        dtype: torch.dtype,
        drawn: int = DRAWN,
    ) -> None:
        super().__init__()
        self._classes = aim.classes
        self._positions = layout.positions if layout is not None else ()
        self._drawn = drawn
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._features = features
        # The bias is the last column: one sparse parameter instead of two.
        self.weight = nn.Parameter(torch.zeros(aim.classes, features + 1, dtype=dtype))
        nn.init.normal_(self.weight[:, :features], std=features**-0.5)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """Of every target that is a class; 0 where none is."""
        z, index, valid = scored_rows(z, target, self._positions, self._classes)
        drawn, expected = self._draw(index, valid)
        rows = F.embedding(index, self.weight, sparse=True)
        own = (z * rows[:, :-1]).sum(-1) + rows[:, -1]
        rows = F.embedding(drawn, self.weight, sparse=True)
        others = torch.addmm(rows[:, -1] - expected.log(), z, rows[:, :-1].T)
        others = others.masked_fill(drawn == index.unsqueeze(1), _NEVER)
        every = torch.cat([own.unsqueeze(1), others], 1).logsumexp(1)
        return ((every - own) * valid).sum() / valid.sum().clamp(min=1)

    def draw_at(self, *place: int) -> None:
        """What is drawn next follows from these numbers alone, whatever was drawn before."""
        self._generator.manual_seed(draw_seed(self._seed, *place))

    def _draw(self, index: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Classes, and how often each was to be expected among them."""
        count, rows = self._drawn, index.shape[0]
        even = torch.randint(self._classes, (count,), generator=self._generator)
        places = torch.randint(rows, (count // 2,), generator=self._generator)
        even, places = (t.to(index.device, non_blocking=True) for t in (even, places))
        taken = index[places].where(valid[places], even[: count // 2])
        drawn = torch.cat([taken, even[count // 2 :]])
        given = valid.to(self.weight.dtype)
        frequency = given.new_zeros(self._classes).scatter_add_(0, index, given) / rows
        missing = 1 - given.mean()
        half = count // 2
        evenly = (half * missing + (count - half)) / self._classes
        return drawn, half * frequency[drawn] + evenly

    @property
    def chance(self) -> float:
        """Loss of knowing nothing: the logarithm of the number of classes."""
        return log(self._classes)
