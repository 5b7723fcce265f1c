"""The regression inside a head: features of every position, and a code, to a gradient.

    x -> standardise -> down (+ code) -> bend -> ... -> up

`bend` rectifies half of the hidden units and leaves the other half linear: the linear half learns
as fast as a low-rank linear map, the rectified half the part of a gradient that depends on class
and activation together. Measured against ReLU, leaky ReLU, GELU, SiLU, tanh and no bend at all, it
was the best or next to it everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.runtime.head_norm import RunningNorm

# Width of the code beside a full linear map, which has no hidden layer of its own.
CODE_WIDTH = 32


class Bend(nn.Module):
    """Rectifies the first half of the units (axis 1), leaves the others as they are."""

    slopes: Tensor

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        slopes = torch.ones(width, dtype=dtype)
        slopes[: width // 2] = 0
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Shape in, shape out."""
        return F.prelu(z, self.slopes)


def affine(inputs: int, outputs: int, maps: bool, dtype: torch.dtype) -> nn.Module:
    """A linear map over axis 1 of `[N, F]`, or of `[B, F, P]` where `maps`."""
    if maps:
        return nn.Conv1d(inputs, outputs, 1, dtype=dtype)
    return nn.Linear(inputs, outputs, dtype=dtype)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters at zero: a new head predicts zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class LowRank(nn.Module):
    """`F -> r (-> r)* -> F`, the code added to the first hidden layer.

    Args:
        features: F.
        hidden_layers: 0 (linear, of rank r) or more.
        width: r.
        maps: whether inputs are `[B, F, P]` instead of `[N, F]`.
        dtype: of parameters and inputs.
    """

    def __init__(
        self, features: int, hidden_layers: int, width: int, maps: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.norm = RunningNorm(features, 1, 3 if maps else 2, dtype)
        self.down = affine(features, width, maps, dtype)
        self.bend = Bend(width, dtype) if hidden_layers else nn.Identity()
        between: list[nn.Module] = []
        for _ in range(hidden_layers - 1):
            between += [affine(width, width, maps, dtype), Bend(width, dtype)]
        self.between = nn.Sequential(*between)
        self.up = zeroed(affine(width, features, maps, dtype))

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        """Predicted gradient, of `x`'s shape; the code has the hidden layer's or broadcasts."""
        z = self.down(self.norm(x))
        if code is not None:
            z = z + code
        predicted: Tensor = self.up(self.between(self.bend(z)))
        return predicted


class Full(nn.Module):
    """One linear map of the features and one of the code: `W x + U code`.

    Args:
        features: F.
        maps: whether inputs are `[B, F, P]` instead of `[N, F]`.
        dtype: of parameters and inputs.
    """

    def __init__(self, features: int, maps: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = RunningNorm(features, 1, 3 if maps else 2, dtype)
        self.linear = zeroed(affine(features, features, maps, dtype))
        self.decode = zeroed(affine(CODE_WIDTH, features, maps, dtype))

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        """Predicted gradient, of `x`'s shape."""
        predicted: Tensor = self.linear(self.norm(x))
        return predicted if code is None else predicted + self.decode(code)
