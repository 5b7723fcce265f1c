"""What training one replica of a stage adds to training a stage; nothing where it is the only one.

Which part of the data it reads, what its losses count, what of its state a checkpoint needs, and
random numbers of its own. `dnic.runtime.replicas` says what replicas are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dnic.runtime.averaging import Averaging, connect_averaging
from dnic.runtime.batches import Header, Share
from dnic.runtime.loss import Loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.seeds import replica_seed, seed_everything
from dnic.runtime.trainer import Trainer
from dnic.runtime.worker import Worker


class ReplicaTrainer(Trainer):
    """Trains one replica of a stage."""

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        self._replicas = worker.replicas
        self._averaging = self._averages(stage)
        self._weight = 1.0  # of the batch at hand, among those of the other replicas

    def epochs(self) -> Iterator[int]:
        """The numbers, from 1, of the epochs that are still to do."""
        place = self.worker.place
        if place.replica:
            # Until now all replicas drew the same, so that they have the same data.
            seed_everything(replica_seed(self.worker.seed, place.stage, place.replica))
        return super().epochs()

    def state_dict(self) -> dict[str, Any]:
        """What this process must remember; what is the same in all replicas the first one keeps."""
        state = super().state_dict()
        if self._replicas.index:
            del state["scheduler"]
            if not self.worker.sharded:
                del state["optimizer"]
        return state

    def finish(self) -> None:
        """Writes the result, and lets go of the process groups: their threads must end before us.

        A thread of gloo that still holds the last message when Python ends aborts the process.
        """
        super().finish()
        self._averaging = Averaging()
        self._replicas = type(self._replicas)()

    def _averages(self, stage: nn.Module) -> Averaging:
        """How this stage's gradients are averaged over its replicas."""
        worker = self.worker
        cut = worker.options.microbatches > 1
        return connect_averaging(stage, worker.replicas, shard=worker.sharded, microbatched=cut)

    def _share(self) -> Share | None:
        return self._replicas.share

    def _evaluated_share(self) -> Share | None:
        # Every column evaluates all, because a forward pass needs the other replicas' parts.
        return Share(0, 1) if self.worker.sharded else None

    @property
    def _evaluates(self) -> bool:
        """Whether this process takes part in evaluations: as a rule the first column alone."""
        return self._replicas.index == 0 or self.worker.sharded

    def _count_shares(self, figures: EpochFigures, header: Header, losses: list[Tensor]) -> None:
        """Counts the losses of whole batches, from those of shares times their weights.

        Here, because it is one message for all steps of an epoch.
        """
        if losses:
            for message, mean in enumerate(self._replicas.average(torch.stack(losses))):
                self._count_loss(figures, mean, header.count.size(message))
