"""A module whose forward is given as a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn


class Written(nn.Module):
    def __init__(self, run: Callable[..., object], **held: object) -> None:
        super().__init__()
        self.run = run
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.run(self, *args, **kwargs)


@pytest.fixture(scope="session")
def written() -> Callable[..., nn.Module]:
    """`written(forward, child=nn.Linear(4, 4))`: `forward` takes the module first."""
    return Written
