"""Whether training on parts of a batch is training on the batch.

Data parallelism and pipelines give the model parts of a batch and take the mean. That equals
backprop where the loss of a batch is the mean of its parts' losses; with BatchNorm, or a loss that
is no mean over the samples (`ignore_index`), it is not, and nothing can be compared. Asked of the
model itself, with a batch of its own training data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnic.proof.modules import bundle_modules
from dnic.proof.tolerance import LOSSES, close
from dnic.runtime.batches import Batches, Share, read_dataset
from dnic.runtime.bundle import PLAN_FILE, Bundle, read_plan
from dnic.runtime.inputs import Inputs
from dnic.runtime.loss import own_loss, total_loss
from dnic.runtime.worker import initial_model

_PARTS = 2


def losses_add_up(
    folder: Path, build: str = "build_model", loss: str | None = "loss", data: str = "train_data"
) -> bool:
    """Whether a bundle's training loss of a batch is the mean over two parts of it.

    Dropout is off, BatchNorm and the like train. Batches of one sample are taken to add up.

    Args:
        folder: the bundle.
        build, loss, data: names in its model file; no loss where the model computes its own.
    """
    bundle = Bundle(folder, read_plan(folder / PLAN_FILE))
    train = bundle.plan.train
    with bundle_modules(folder) as (model_file, _):
        model = initial_model(bundle, getattr(model_file, build), train.seed, dropout=False)
        model.train()
        batches = Batches(
            read_dataset(getattr(model_file, data)),
            train.batch_size,
            shuffle=True,
            seed=train.seed,
            loader_options={},
            samples=bundle.plan.samples,
        )
        if batches.count().size(0) < _PARTS:
            return True
        of_loss = own_loss if loss is None else getattr(model_file, loss)
        shares = [Share(part, _PARTS) for part in range(_PARTS)]
        whole, *parts = (
            _loss_sum(model, bundle, of_loss, batches, share) for share in (None, *shares)
        )
    return close(torch.stack(parts).sum(), whole, LOSSES)


def _loss_sum(
    model: nn.Module, bundle: Bundle, loss: Any, batches: Batches, share: Share | None
) -> torch.Tensor:
    """The loss of the first batch, or of a share of it, times the samples in it."""
    batch, target = next(batches.epoch(1, share))
    with torch.no_grad():
        output = Inputs(bundle.plan.samples).call(model, batch, torch.device("cpu"))
        return total_loss(loss, output, target).double() * target.shape[0]
