"""How the replicas of a stage average their gradients, beside the backward pass where that goes.

`DistributedDataParallel` (DDP) and FSDP2 expect one forward and one backward pass in each step, the
latter from a loss. A stage has as many as microbatches, in the order of a pipeline, and goes back
from gradients that it is given. So passes accumulate, and only the last backward pass of a step
reduces, as in `torch.distributed.pipelining`'s stages. Late stages (`dnic.runtime.late_engine`) go
back through copies of their weights, of which torch's classes know nothing: they average
afterwards.

Of DDP only the reducer is used, which hangs on the parameters: its `forward` would put copies of
the outputs into the graph, and fills its buckets anew after the first step, so that with three and
more replicas a resumed run would add up in another order. For the same reason it always looks for
parameters without a gradient, which need not be the same ones in every step then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn.parallel import DistributedDataParallel

from dnic.runtime.failure import lost_peers_named
from dnic.runtime.replicas import Replicas

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class Averaging:
    """A stage without replicas: there is nothing to average."""

    def backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor], *, last: bool) -> None:
        """A backward pass.

        Args:
            roots: to go back from.
            gradients: theirs.
            last: whether it is the last one of the step; after it the gradients are averages.

        Raises:
            LinkFault: another replica is gone.
        """
        backward(roots, gradients)

    def after(self) -> None:
        """Averages what lies in the parameters, where `backward` does not."""

    def rest(self) -> None:
        """Gives up what only forward and backward passes need; after an evaluation."""


class ByHand(Averaging):
    """Averages when the gradients are where the optimizer looks for them."""

    def __init__(self, stage: nn.Module, replicas: Replicas) -> None:
        self._parameters = trained(stage)
        self._replicas = replicas

    def after(self) -> None:
        """Averages, parameter by parameter."""
        self._replicas.average_gradients(self._parameters)


class Overlapped(Averaging):
    """Averages through DDP, which sends a bucket of gradients as soon as it is full."""

    def __init__(self, stage: nn.Module, replicas: Replicas) -> None:
        self._parallel = DistributedDataParallel(
            _Watched(stage),
            process_group=replicas.group,
            find_unused_parameters=True,
            init_sync=False,  # every replica has the same initial weights
        )

    def backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor], *, last: bool) -> None:
        """A backward pass; the last one reduces what all of them have added up."""
        with lost_peers_named():
            if last:
                self._parallel.reducer.prepare_for_backward(list(roots))
            backward(roots, gradients)


class Sharded(Averaging):
    """Averages through FSDP2, which leaves each replica its part of the gradients.

    Args:
        stage: as `dnic.runtime.sharding` left it.
        microbatched: whether a step may have several passes. Then the parameters stay whole from
            the step's first forward to its last backward pass, as torch recommends for pipelines:
            gathering them anew for every microbatch takes longer than computing on it.
    """

    def __init__(self, stage: FSDPModule, *, microbatched: bool) -> None:
        self._stage = stage
        self._kept = microbatched
        if microbatched:
            stage.set_reshard_after_forward(False)

    def backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor], *, last: bool) -> None:
        """A backward pass; the last one reduces what all of them have added up."""
        self._stage.set_requires_gradient_sync(last)
        self._stage.set_is_last_backward(last)
        if self._kept:
            self._stage.set_reshard_after_backward(last)
        with lost_peers_named():
            backward(roots, gradients)

    def rest(self) -> None:
        """Keeps the own part of the parameters alone."""
        for module in self._stage.modules():  # type: ignore[attr-defined]
            if hasattr(module, "reshard"):
                module.reshard()


class _Watched(nn.Module):
    """A stage beside a parameter that nothing uses.

    Where DDP looks for parameters without a gradient and finds none, it says so on every process's
    stderr. This one it always finds.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.unused = nn.Parameter(torch.zeros(1, device=trained(stage)[0].device))


def connect_averaging(
    stage: nn.Module, replicas: Replicas, *, shard: bool, microbatched: bool
) -> Averaging:
    """How the gradients of a stage that is not late are averaged.

    Args:
        stage: of this process.
        replicas: its replicas.
        shard: whether each replica holds a part of the parameters.
        microbatched: whether a step may have several passes.
    """
    if replicas.number == 1 or not trained(stage):
        return Averaging()
    if shard:
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(stage, FSDPModule)  # `dnic.runtime.sharding` has made it one
        return Sharded(stage, microbatched=microbatched)
    return Overlapped(stage, replicas)


def trained(stage: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in stage.parameters() if parameter.requires_grad]
