"""Tails: small ends of a network, whose loss has a gradient at an interface at once.

    tensors -> read -> down -> bend -> (layer -> bend)* -> ending -> loss(targets)

What a virtual forward-backward network (Miyato et al. 2017) puts at a cut, and what a local loss
is made of. Hidden layers and widths are those of heads (`dnic.runtime.heads`): without hidden
layers a tail is one linear map, of a rank where a width is given. All tensors of an interface share
one tail: each is read by itself, what they say is added up; a tensor whose positions have targets
is joined by what the others say of the whole sample. An encoder-decoder's memory so informs every
position of its decoder.

Not handled: sizes that change from batch to batch; targets that do not follow the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.head_regressor import Bend
from dnic.runtime.links import dtype_named
from dnic.runtime.loss import own_loss
from dnic.runtime.registry import PredictorRequest
from dnic.runtime.tail_aim import Aim
from dnic.runtime.tail_clustered import ClusteredEnding
from dnic.runtime.tail_ending import ClassEnding, Ending, ModelEnding, ValueEnding
from dnic.runtime.tail_options import TailOptions
from dnic.runtime.tail_reader import Reader, Reading
from dnic.runtime.tail_sampled import SampledEnding

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average


class Tail(nn.Module):
    """Scores the tensors of an interface against the targets. Made by `build_tail`.

    Args:
        readers: one for each tensor.
        downs: what brings each to the hidden width; empty where one tensor is read directly.
        layers: behind them.
        ending: the last.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        downs: Sequence[nn.Linear],
        layers: Sequence[nn.Module],
        ending: Ending,
    ) -> None:
        super().__init__()
        self.readers = nn.ModuleList(readers)
        self.downs = nn.ModuleList(downs)
        self.layers = nn.Sequential(*layers)
        self.ending = ending

    @property
    def readings(self) -> list[Reading]:
        """Where the samples of each tensor lie."""
        return [reader.reading for reader in self._all()]

    def forward(self, fronts: Sequence[Tensor], target: Tensor) -> Tensor:
        """The mean loss, without axes.

        Args:
            fronts: the tensors, as `Reading.front` returns them.
            target: of the same samples.
        """
        read = [reader(front) for reader, front in zip(self._all(), fronts, strict=True)]
        samples = target.shape[0] if target.ndim else 1
        for x in read:
            if x.shape[0] not in (1, samples):
                raise RuntimeFault(
                    f"a tail met tensors of {x.shape[0]} samples and targets of {samples}",
                    expected="as many: targets travel with their own batch",
                )
        z = self._joined(read) if self.downs else read[0]
        loss: Tensor = self.ending(z.expand(samples, *z.shape[1:]), target)
        return loss

    def _joined(self, read: Sequence[Tensor]) -> Tensor:
        """All tensors' features in one hidden layer, and what follows it."""
        brought = [down(x) for down, x in zip(self.downs, read, strict=True)]
        deepest = max(x.ndim for x in brought)
        wide = [x if x.ndim == deepest else x.unsqueeze(1) for x in brought]
        z = wide[0]
        for other in wide[1:]:
            z = z + other
        # `Bend` takes features on axis 1.
        last: Tensor = self.layers(z.flatten(0, -2))
        return last.view(*z.shape[:-1], -1)

    def observe(
        self,
        fronts: Sequence[Tensor],
        target: Tensor,
        momentum: float,
        average: Average | None = None,
    ) -> None:
        """Moves all running statistics by `momentum` (0 to 1) towards this batch.

        `average` makes means over the whole batch of those over a replica's share.
        """
        for reader, front in zip(self._all(), fronts, strict=True):
            reader.observe(front, momentum, average)
        self.ending.observe(target, momentum, average)

    def _all(self) -> list[Reader]:
        return [reader for reader in self.readers if isinstance(reader, Reader)]


def build_tail(request: PredictorRequest, options: TailOptions) -> Tail:
    """A tail for the tensors of an interface.

    Its initial parameters depend on nothing but the arguments, and the global random state is left
    as it was.

    Raises:
        RuntimeFault: no such tail can be built.
    """
    for tensor in request.tensors:
        if not dtype_named(tensor.dtype).is_floating_point:
            raise RuntimeFault(
                f"a tail has no gradient for {tensor.name}, whose dtype is {tensor.dtype}",
                expected="a tensor of real numbers",
            )
    dtypes = {dtype_named(tensor.dtype) for tensor in request.tensors}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    where = f"plan.yaml: interfaces: {request.tensors[0].name}"
    aim = Aim.of(request.target, options, request.output, where)
    if aim.kind == "model" and (request.loss is None or request.loss is own_loss):
        raise RuntimeFault(
            "there is no loss(output, target) that a tail could be given to",
            where=f"{where}: head: loss",
            expected="loss: auto, or a model file with a loss",
        )
    readings = [Reading(tensor.shape) for tensor in request.tensors]
    aligned = aligned_readings(readings, aim)
    hidden, width = request.head.hidden_layers, request.head.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        narrow = hidden > 0 or width is not None or len(readings) > 1
        readers = [
            Reader(reading, index in aligned, dtype) for index, reading in enumerate(readings)
        ]
        lead = aligned[0] if aligned else 0
        rank = width or readers[lead].features
        downs = [nn.Linear(r.features, rank, dtype=dtype) for r in readers if narrow]
        layers: list[nn.Module] = [Bend(rank, dtype)] if hidden else []
        for _ in range(hidden - 1):
            layers += [nn.Linear(rank, rank, dtype=dtype), Bend(rank, dtype)]
        features = rank if narrow else readers[0].features
        layout = readings[lead].layout if aligned else None
        ending: Ending
        if aim.kind == "model":
            assert request.loss is not None  # refused above
            ending = ModelEnding(features, aim, layout, request.loss, dtype)
        elif aim.kind == "values":
            ending = ValueEnding(features, aim, layout, dtype)
        elif aim.kind == "sampled":
            ending = SampledEnding(features, aim, layout, request.seed, dtype)
        elif aim.kind == "clustered":
            ending = ClusteredEnding(features, aim, layout, dtype)
        else:
            ending = ClassEnding(features, aim, layout, dtype)
        return Tail(readers, downs, layers, ending)


def aligned_readings(readings: Sequence[Reading], aim: Aim) -> list[int]:
    """The tensors that are read position by position, the leading one first.

    All have the same positions: those of the targets if one has, else of the first that can be
    resized to.
    """
    able = [
        index
        for index, reading in enumerate(readings)
        if reading.follows and reading.rows == 1 and aim.aligned(reading.layout)
    ]
    if not able:
        return []
    lead = next((index for index in able if aim.exact(readings[index].layout)), able[0])
    positions = readings[lead].layout.positions
    return [lead] + [i for i in able if i != lead and readings[i].layout.positions == positions]
