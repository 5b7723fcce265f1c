"""Sizes and data of the models whose predicted speed is compared with the measured one."""

import os

import torch
from torch.utils.data import TensorDataset

CLASSES = 10
BATCHES = 300


def size() -> int:
    """Which of the four sizes, 0 to 3, from DNIC_SIZE."""
    return int(os.environ.get("DNIC_SIZE", "0"))


def random_data(
    batch: int, *shape: int, targets: tuple[int, ...] = (), classes: int = CLASSES
) -> TensorDataset:
    """Random inputs and classes; speed does not depend on what they are."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, *shape, generator=generator)
    labels = torch.randint(classes, (batch, *targets), generator=generator)
    return TensorDataset(
        inputs.repeat(BATCHES, *[1] * len(shape)), labels.repeat(BATCHES, *[1] * len(targets))
    )
