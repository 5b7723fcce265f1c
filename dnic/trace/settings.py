"""Settings of a model that only get in the way of training, switched off while it is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.compiler
from torch import nn


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Key-value caches off: `config.use_cache`, which transformers leaves on even in training.

    A cache is an object that travels through all layers; training never reads it.
    """
    switched: list[Any] = []
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False
            switched.append(config)
    try:
        yield
    finally:
        for config in switched:
            config.use_cache = True


@contextmanager
def as_compilers_see_it(active: bool) -> Iterator[None]:
    """`torch.compiler.is_compiling()` is true inside.

    Libraries ask it where a shortcut reads data (is the attention mask all ones?), and take the
    general way for compilers.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = active or before
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
