"""What the real predictors take on this machine, measured once for each shape and kind."""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dnic.cost.child import ChildFailed, can_fork, cores, in_child
from dnic.cost.clock import Clock, repeated, threads_set, typical
from dnic.cost.head import head_cost, samples_of
from dnic.cost.head_parts import HeadCost, Source, TargetSize
from dnic.cost.kept import KeptTimes
from dnic.cost.profile import DeviceProfile
from dnic.cost.tail import TailChoice
from dnic.errors import DnicError
from dnic.graph.graph import Value

if TYPE_CHECKING:
    from dnic.runtime.plan import TensorSpec

BUILT_IN_SOURCES = ("synthetic", "virtual", "local", "none")
_BUDGET_US = 150_000.0
_RATE = 5e-3
MANY_CLASSES = 1024
# What runs between two uses of a head: enough to take the caches and the branch predictor from it.
_BETWEEN_WIDTH, _BETWEEN_LAYERS = 256, 4


def time_head(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    source: Source = "synthetic",
    threads: int = 1,
    kept: KeptTimes | None = None,
    one_in: int = 1,
    tail: TailChoice = TailChoice(),  # noqa: B008  # frozen
    beside: tuple[Value, ...] = (),
) -> HeadCost:
    """Like `head_cost`, but what predicts is built and run on this machine's CPU.

    A batch of noise is predicted and learnt from a number of times, with other layers' work between
    as in training (without it a small head takes half as long), once for each shape and kind of
    head; the result is kept on disk. Sources that a package registers are built and run like
    dnic's own. What cannot be built here is computed: a tail that ends in the model's own loss, a
    source that only the model file registers. torch's random state is left as it was.

    Args:
        values: the differentiable tensors that cross, the batch on one axis.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is as wide as the tensor's features.
        profile: the device, for what is computed.
        target: what the heads see of the targets; None without context.
        source: where the gradient comes from.
        threads: that one process computes with.
        kept: times that are known; None for this machine's file.
        one_in: it learns from one in so many samples of a batch.
        tail: what a tail is scored by.
        beside: what heads see beside the activation and the targets.
    """
    given = hidden_layers, width, profile, target, source, one_in, tail, beside
    computed = head_cost(values, batch_size, *given)
    if source in ("exact", "stale", "none") or batch_size < 1 or not values:
        return computed
    known = kept or KeptTimes(threads)
    # Heads are built for each tensor, whatever crosses beside it; others for all at once.
    parts = [[value] for value in values] if source == "synthetic" else [list(values)]
    found = [0.0, 0.0, 0.0]
    for part in parts:
        head = part, batch_size, hidden_layers, width, target, source, one_in, tail, beside
        key = _key(*head)
        if key not in known:
            try:
                known.put(key, _timed(*head, threads))
            except (DnicError, RuntimeError, ValueError, TypeError, ChildFailed):
                return computed
        found = [a + b for a, b in zip(found, [*known[key], 0.0], strict=False)]
    known.save()
    parameters = computed.parameters if source in BUILT_IN_SOURCES else round(found[2])
    return HeadCost(parameters, found[0], found[1], computed.unaveraged)


def _key(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    target: TargetSize | None,
    source: Source,
    one_in: int,
    tail: TailChoice,
    beside: tuple[Value, ...],
) -> str:
    """What the times of a head are kept under."""
    seen = "".join(f"-{value.shape}-{value.dtype}" for value in beside)
    if source == "synthetic":
        rows, sample = samples_of(values[0], batch_size)
        key = f"head-between4-{rows}-{sample}-{values[0].dtype}-{hidden_layers}-{width}-{target}"
        return f"{key}-{one_in}{seen}"
    shapes = [(value.shape, value.dtype) for value in values]
    given = source, batch_size, shapes, hidden_layers, width, target, one_in
    return f"predictor-words-{given}-{tail if source in ('virtual', 'local') else ''}{seen}"


def _timed(*head: Any) -> list[float]:
    """Like `_time`: in a child with the memory and the core of a training process, if possible."""
    threads: int = head[-1]
    if can_fork() and threads == 1:
        found: list[float] = in_child(lambda: _quiet(head), cores()[0])
        return found
    return _quiet(head)


def _quiet(head: Sequence[Any]) -> list[float]:
    with threads_set(head[-1]), torch.random.fork_rng(devices=[]):
        return _time(*head)


def _time(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    target: TargetSize | None,
    source: Source,
    one_in: int,
    tail: TailChoice,
    beside: tuple[Value, ...],
    threads: int,
) -> list[float]:
    """Microseconds of predicting, and of learning from, one batch; and the parameters."""
    from dnic.runtime.plan import HeadPlan, TargetPlan, TensorSpec
    from dnic.runtime.registry import PredictorRequest, predictor_kind
    from dnic.runtime.tail_training import TailPredictor

    kind = predictor_kind(source)
    options = {"targets": tail.targets, "loss": tail.loss} if "targets" in kind.options else {}
    context: Literal["target", "none"] = "none" if target is None else "target"
    head = HeadPlan(hidden_layers, width, context, _RATE, one_in, options=options)
    targets = torch.zeros(batch_size) if target is None else _targets(batch_size, target)
    planned = None
    if target is not None:
        dtype_name = str(targets.dtype).removeprefix("torch.")
        planned = TargetPlan(target.shape, dtype_name, target.classes)
    tensors, seen = (
        tuple(TensorSpec(v.name, v.shape, v.dtype, True) for v in several)
        for several in (values, beside)
    )
    predictor = kind.build(
        PredictorRequest(tensors, head, planned, output=tail.output, context=seen)
    )
    predictor.context = [_noise(spec, batch_size) for spec in seen]
    if isinstance(predictor, TailPredictor):
        predictor.tail.ending.settle()
    crossed = [_noise(spec, batch_size) for spec in tensors]
    gradients = [torch.randn_like(h) / batch_size for h in crossed]
    returned = gradients if kind.needs_gradients else None
    clock = Clock(torch.device("cpu"), threads)

    layers = [nn.Linear(_BETWEEN_WIDTH, _BETWEEN_WIDTH) for _ in range(_BETWEEN_LAYERS)]
    others, between = nn.Sequential(*layers), torch.randn(_BETWEEN_WIDTH, _BETWEEN_WIDTH)

    def once() -> tuple[float, float]:
        others(between).sum().backward()
        start = clock()
        predictor.predict(crossed, targets, 1)
        predicted_us = clock.between(start, clock())
        others(between).sum().backward()
        start = clock()
        predictor.learn(crossed, targets, returned)
        return predicted_us, clock.between(start, clock())

    parameters = sum(parameter.numel() for parameter in predictor.parameters().values())
    return [*(typical(times) for times in repeated(once, _BUDGET_US)), float(parameters)]


def _noise(spec: TensorSpec, batch_size: int) -> Tensor:
    """Of a tensor's dtype; integers are small ones."""
    noise = torch.randn(spec.resolve(batch_size))
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return (noise if dtype.is_floating_point else 100 * noise).to(dtype)


def _targets(rows: int, target: TargetSize) -> Tensor:
    if target.classes is None:
        return torch.randn(rows, *target.shape)
    if target.classes <= MANY_CLASSES:
        return torch.randint(target.classes, (rows, *target.shape))
    # As frequent as words are, one over their rank: what a tail does may depend on it.
    drawn = (torch.rand(rows, *target.shape) * log1p(target.classes)).exp().long() - 1
    return drawn.clamp(max=target.classes - 1)
