"""Heads: modules that predict the loss gradient at an interface from the activation and targets.

A head is a direct regressor (Jaderberg et al. 2016, arXiv 1608.05343, section 2): it returns the
gradient of one sample's loss in normalised units; `HeadTrainer` keeps the scale. A new head
predicts zero. Which parts of a tensor share one map:

- vectors, and small sequences and maps with one target per sample: every element is a feature,
  because what follows (a flatten, a pool) treats positions differently;
- larger ones: one map for all positions (a 1x1 convolution for maps), and beside it a coarse
  picture of the whole tensor, predicted at once and stretched;
- with a target for every position (next tokens, segmentation): one map for all positions.

Where the batch lies on another axis than 0, `head_axis` turns the tensor first. Not handled:
complex tensors, sizes that change from batch to batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.head_coarse import Coarse
from dnic.runtime.head_context import ClassContext, Context, HashedContext, ValueContext
from dnic.runtime.head_layout import Layout, layout_of
from dnic.runtime.head_regressor import CODE_WIDTH, Full, LowRank

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

MOST_HIDDEN_LAYERS = 3
# Tensors of more elements per sample share a map between positions.
MOST_FLAT = 4096
# Elements of a batch that a shared map's running statistics are taken from: more say nothing new.
MOST_OBSERVED = 2**18


@dataclass(frozen=True)
class HeadSpec:
    """What a plan says about a head.

    Attributes:
        hidden_layers: 0 to 3.
        width: rank of the hidden layers; None is full width, and with no hidden layer one linear
            map without a bottleneck.
        context: `target` (the head sees the targets) or `none`.
        lr: learning rate of its Adam.
    """

    hidden_layers: int = 1
    width: int | None = 32
    context: str = "target"
    lr: float = 5e-3


class Head(nn.Module):
    """Predicts the gradient of each sample's loss, in units in which its mean square is 1.

    Made by `build_head`.

    Args:
        sample_shape: of the crossing tensor, without the batch axis (axis 0).
        layout: how it is read.
        spec: hidden layers and width.
        context: what it sees of the targets; None for nothing.
        beside: what it sees of further tensors.
        dtype: of its parameters; predictions have the dtype of the crossing tensor.
    """

    regressor: LowRank | Full

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        layout: Layout,
        spec: HeadSpec,
        context: Context | None,
        beside: Sequence[Context],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.sample_shape = sample_shape
        self.dtype = dtype
        self.context = context
        self.beside = nn.ModuleList(beside)
        self.coarse: Coarse | None = None
        self._layout = layout
        k, maps = spec.hidden_layers, layout.channels_first
        if spec.width is None and k == 0:
            self.regressor = Full(layout.features, maps, dtype)
        else:
            width = spec.width or layout.features
            self.regressor = LowRank(layout.features, k, width, maps, dtype)
        # Where each position has a target of its own, that says more than its place.
        informed = any(seen.per_position for seen in self._contexts)
        if layout.positions and not informed and spec.width is not None:
            self.coarse = Coarse(layout, k, spec.width, dtype)

    @property
    def _contexts(self) -> list[Context]:
        target = [] if self.context is None else [self.context]
        return [*target, *(cast(Context, seen) for seen in self.beside)]

    def forward(self, h: Tensor, target: Tensor | None, beside: Sequence[Tensor] = ()) -> Tensor:
        """Predicted gradients, of h's shape and dtype.

        Args:
            h: `[B, *sample_shape]`.
            target: the same batch's targets; not looked at by a head without context.
            beside: the further tensors that it sees, `[B, ...]`.

        Raises:
            RuntimeFault: when h or the targets are not what the head was built for.
        """
        x = self._checked(h)
        told = zip(self._contexts, self._told(target, beside), strict=True)
        codes = [seen(tensor, x.shape[0]) for seen, tensor in told]
        layout = self._layout
        spread = reduce(add, map(layout.spread, codes)) if codes else None
        predicted = self.regressor(layout.canonical(x), spread).reshape(x.shape)
        if self.coarse is not None:
            predicted = self.coarse(x, reduce(add, codes) if codes else None, predicted)
        return cast(Tensor, predicted.to(h.dtype))

    @torch.no_grad()
    def observe(
        self,
        h: Tensor,
        target: Tensor | None,
        momentum: float,
        average: Average | None = None,
        beside: Sequence[Tensor] = (),
    ) -> None:
        """Moves the running statistics of the inputs by `momentum` (0 to 1) towards this batch.

        `average` makes means over the whole batch of those over a replica's share.
        """
        x = self._checked(h)
        some = x[: max(1, MOST_OBSERVED // prod(self.sample_shape))]
        self.regressor.norm.observe(self._layout.canonical(some), momentum, average)
        if self.coarse is not None:
            self.coarse.observe(x, momentum, average)
        for seen, tensor in zip(self._contexts, self._told(target, beside), strict=True):
            seen.observe(tensor, momentum, average)

    def _checked(self, h: Tensor) -> Tensor:
        if h.shape[1:] != self.sample_shape:
            raise RuntimeFault(
                f"a head for {batched(self.sample_shape)} met a tensor of shape {list(h.shape)}",
                expected="every batch of the shape that was compiled, but for the batch axis",
                hint="pad the inputs to one size, or compile with example_inputs() of this size",
            )
        return h.to(self.dtype)

    def _told(self, target: Tensor | None, beside: Sequence[Tensor]) -> list[Tensor]:
        if self.context is None:
            return list(beside)
        if target is None:
            raise RuntimeFault(
                f"the head for {batched(self.sample_shape)} sees the targets but was given none",
                hint="set the interface's head to `context: none` in plan.yaml",
            )
        return [target, *beside]


def build_head(
    sample_shape: tuple[int, ...],
    dtype: torch.dtype,
    spec: HeadSpec,
    classes: int | None,
    target_sample_shape: tuple[int, ...] | None,
    target_dtype: torch.dtype | None,
    seed: int = 0,
    beside: Sequence[tuple[tuple[int, ...], torch.dtype]] = (),
) -> Head:
    """A head for a crossing tensor; it predicts zero until it has learnt.

    Its initial parameters depend on nothing but the arguments, and the global random state is left
    as it was.

    Args:
        sample_shape: of the crossing tensor, without the batch axis.
        dtype: of the crossing tensor; parameters are float32, or float64 for a float64 tensor.
        spec: what the plan says.
        classes: number of categories of integer targets; None for real-valued targets.
        target_sample_shape: of the targets, without the batch axis; None when there are none.
        target_dtype: of the targets; None when there are none.
        seed: of the initial parameters.
        beside: shape (of one sample) and dtype of each further tensor that it sees.

    Raises:
        RuntimeFault: when no such head can be built.
    """
    sample_shape = tuple(sample_shape)
    _check(sample_shape, dtype, spec, classes, target_sample_shape, target_dtype)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layout = layout_of(sample_shape)
        context: Context | None = None
        width = _code_width(spec, layout)
        if spec.context == "target" and target_sample_shape is not None:
            target_shape = tuple(target_sample_shape)
            if classes is None:
                context = ValueContext(target_shape, layout, width, parameter_dtype)
            else:
                context = ClassContext(classes, target_shape, layout, width, parameter_dtype)
        others = [_seen(*tensor, layout, width, parameter_dtype) for tensor in beside]
        informed = any(seen is not None and seen.per_position for seen in (context, *others))
        if spec.width is not None and not informed and prod(sample_shape) <= MOST_FLAT:
            layout = layout_of((prod(sample_shape),))
        return Head(sample_shape, layout, spec, context, others, parameter_dtype)


def batched(sample_shape: tuple[int, ...]) -> str:
    """`[B, 64, 8, 8]`, for messages."""
    return "[" + ", ".join(["B", *map(str, sample_shape)]) + "]"


def _seen(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: Layout,
    width: int,
    parameter_dtype: torch.dtype,
) -> Context:
    if dtype.is_complex or prod(shape) == 0:
        raise RuntimeFault(
            f"a head cannot see a tensor of shape {batched(shape)}, {dtype}",
            expected="a tensor that is not empty, of integers, booleans or real numbers",
        )
    whole = not dtype.is_floating_point and dtype != torch.bool
    kind = HashedContext if whole else ValueContext
    return kind(tuple(shape), layout, width, parameter_dtype)


def _code_width(spec: HeadSpec, layout: Layout) -> int:
    if spec.width is None:
        return CODE_WIDTH if spec.hidden_layers == 0 else layout.features
    return spec.width


def _check(
    sample_shape: tuple[int, ...],
    dtype: torch.dtype,
    spec: HeadSpec,
    classes: int | None,
    target_sample_shape: tuple[int, ...] | None,
    target_dtype: torch.dtype | None,
) -> None:
    where = f"a crossing tensor of shape {batched(sample_shape)}, {dtype}"
    if not dtype.is_floating_point:
        raise RuntimeFault(
            "a head cannot predict a gradient for a tensor that is not floating point",
            where=where,
            expected="a tensor of real numbers: nothing else has a gradient here",
        )
    if prod(sample_shape) == 0:
        raise RuntimeFault("a head cannot be built for an empty tensor", where=where)
    if not 0 <= spec.hidden_layers <= MOST_HIDDEN_LAYERS:
        raise RuntimeFault(
            f"a head cannot have {spec.hidden_layers} hidden layers",
            where=where,
            expected=f"0 to {MOST_HIDDEN_LAYERS}",
        )
    if spec.width is not None and spec.width < 1:
        raise RuntimeFault(
            f"a head cannot be {spec.width} wide", where=where, expected="at least 1, or null"
        )
    if spec.context not in ("target", "none"):
        raise RuntimeFault(
            f"a head has no context {spec.context!r}", where=where, expected="target or none"
        )
    if spec.context == "target":
        _check_target(where, classes, target_sample_shape, target_dtype)


def _check_target(
    where: str,
    classes: int | None,
    shape: tuple[int, ...] | None,
    dtype: torch.dtype | None,
) -> None:
    hint = "set the interface's head to `context: none` in plan.yaml"
    if shape is None or dtype is None:
        raise RuntimeFault("a head cannot see targets: there are none", where=where, hint=hint)
    if dtype.is_complex or prod(shape) == 0:
        raise RuntimeFault(
            f"a head cannot see targets of shape {batched(tuple(shape))}, {dtype}",
            where=where,
            expected="targets that are not empty, of integers or real numbers",
            hint=hint,
        )
    if classes is not None and (dtype.is_floating_point or classes < 1):
        raise RuntimeFault(
            f"a head cannot see targets of {classes} classes and dtype {dtype}",
            where=where,
            expected="integers from 0 to classes - 1, or classes: null for real-valued targets",
            hint=hint,
        )
