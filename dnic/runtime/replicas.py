"""The replicas of a stage: processes that hold copies of it and share every batch.

Every replica takes part in a pipeline of its own, its column (`dnic.runtime.place`), with its share
of each batch. Losses are weighed by the shares, so that the average over the replicas is the mean
over the whole batch, also where a batch does not divide evenly; a column without a sample runs one
without weight, because the others wait for it.

`torch.distributed.device_mesh` makes the process groups: a mesh with the dimensions `stage` and
`replica`. What is here beside it is what it leaves open: whose share a sample is, what a share
weighs, and an average that is the same bits on every replica. How gradients are averaged is in
`dnic.runtime.averaging`. Without replicas there is no mesh, no group and no message.

What differs from one process for each stage, by nature: BatchNorm sees a share and not the batch,
dropout draws other masks, and a loss that is no mean over the samples (`ignore_index`) becomes the
weighted mean of the shares' losses. Every replica keeps its own running statistics during an epoch;
those of the first are taken over by all when the next one begins, are what it evaluates with, and
what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dnic.runtime.batches import Header, Share
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.links import Count

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from dnic.runtime.place import Place

Average = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Replicas:
    """The replicas of one stage, as one of them sees them.

    Attributes:
        index: its number among them.
        number: how many there are.
        mesh: of the stage's replicas; None without.
        group: of the stage's replicas; None: all processes.
        column: of the one process of each stage with which it works; None: all processes.
    """

    index: int = 0
    number: int = 1
    mesh: DeviceMesh | None = None
    group: dist.ProcessGroup | None = None
    column: dist.ProcessGroup | None = None

    @property
    def share(self) -> Share | None:
        """Its share of every batch; None without others."""
        return Share(self.index, self.number) if self.number > 1 else None

    def part(self, header: Header) -> Header:
        """What its column is given of an epoch: as many batches, smaller ones."""
        if self.number == 1:
            return header
        whole = header.count
        sizes = (self._samples(size) for size in (whole.batch_size, whole.last_batch_size))
        each, last = (max(1, size) for size in sizes)
        return replace(header, count=Count(whole.messages, each, last))

    def weight(self, batch_size: int) -> float:
        """What the mean over its share counts in the average over the replicas; on average 1.

        Args:
            batch_size: samples in the whole batch.
        """
        return self._samples(batch_size) * self.number / batch_size

    def average(self, tensor: Tensor) -> Tensor:
        """The average over the replicas, the same bits on each; all of them must ask.

        Raises:
            LinkFault: one of them is gone.
        """
        if self.number == 1:
            return tensor
        return self._sum(tensor / self.number)

    def weighed(self, weight: float) -> Average | None:
        """The average of what is a mean over each replica's share; None without others."""
        if self.number == 1:
            return None
        return lambda tensor: self.average(tensor * weight)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every replica, in their order, of one shape in all; all of them must ask.

        Raises:
            LinkFault: one of them is gone.
        """
        return [tensor] if self.number == 1 else self._each(tensor.contiguous())

    def average_gradients(self, parameters: list[nn.Parameter]) -> bool:
        """Averages gradients as DDP does, one after the other.

        A parameter that has a gradient in no process is left without one, so that the optimizer
        does not touch it.

        Args:
            parameters: that train; the same ones in every process.

        Returns:
            Whether a process had a parameter without a gradient.
        """
        if self.number == 1 or not parameters:
            return False
        device = parameters[0].device
        having = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        having = self._sum(having)
        for parameter, count in zip(parameters, having.tolist(), strict=True):
            if count:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.average(own)
        return bool((having < self.number).any())

    def take_buffers(self, module: nn.Module) -> None:
        """Takes over the first replica's buffers; at the start of an epoch."""
        buffers = [buffer for buffer in module.buffers() if buffer.numel()]
        if self.number == 1 or not buffers:
            return
        # Constants may be views without an axis of their own.
        parts = [buffer.detach().flatten().contiguous().view(torch.uint8) for buffer in buffers]
        together = self._of_first(torch.cat(parts))
        given = together.split_with_sizes([part.numel() for part in parts])
        with torch.no_grad():
            for buffer, own, first in zip(buffers, parts, given, strict=True):
                if not torch.equal(own, first):
                    # A copy of its own: not every offset suits every dtype.
                    buffer.copy_(first.clone().view(buffer.dtype).view(buffer.shape))

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over the replicas, where the tensor was."""
        with lost_peers_named():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def _each(self, tensor: Tensor) -> list[Tensor]:
        """What every replica has."""
        given = [torch.empty_like(tensor) for _ in range(self.number)]
        with lost_peers_named():
            dist.all_gather(given, tensor, group=self.group)
        return given

    def _of_first(self, tensor: Tensor) -> Tensor:
        """What the first replica has, where the tensor was."""
        with lost_peers_named():
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def _samples(self, batch_size: int) -> int:
        begin, end = Share(self.index, self.number).bounds(batch_size)
        return end - begin


def connect_replicas(place: Place, device: torch.device) -> Replicas:
    """The replicas of a process's stage; all processes must ask."""
    if place.replicas == 1:
        return Replicas()
    from torch.distributed.device_mesh import init_device_mesh

    sizes = place.stages, place.replicas
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("stage", "replica"))
    replicas = mesh["replica"]
    column = mesh["stage"].get_group()
    return Replicas(place.replica, place.replicas, replicas, replicas.get_group(), column)
