"""Rung 1: the stages, one after the other, are the model.

Both are run in one process from the same weights, inputs and random state: outputs, the gradient of
every parameter, and the buffers afterwards, in train mode (dropout on) and in eval mode, at the
traced batch size and at another one. The backward pass goes stage by stage, as in a real run: each
stage starts from the gradients of the tensors that it sent. The loss is a fixed random projection
of the output, which needs no targets and reaches every element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnic.partition.plan import Plan
from dnic.proof.rung import Errors, Rung
from dnic.proof.tolerance import SPLIT, close, error, magnitude
from dnic.runtime.inputs import invoke, leaf
from dnic.trace import (
    as_compilers_see_it,
    fresh,
    grown,
    seeded,
    tensors_in,
    untouched,
    without_cache,
)

OTHER_BATCH = 3
MODES = ("train", "eval")
MODEL_FAILS = "the model itself raises"


@dataclass
class _Run:
    """What one forward and backward pass left."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    backward: bool = True


def prove_split(model: nn.Module, stages: Sequence[nn.Module], plan: Plan, inputs: Any) -> Rung:
    """Compare the stages with the model.

    Args:
        model: the whole model with its initial weights; it shares no tensor with the stages.
        stages: the emitted stages with the same weights.
        plan: what each stage takes and returns.
        inputs: the example inputs.
    """
    seen = _Seen()
    names = first_names(model)
    size = plan.model.batch_size
    batches = {size: inputs, size + OTHER_BATCH: grown(inputs, size, OTHER_BATCH)}
    for mode in MODES:
        for samples, batch in batches.items():
            at = f"{mode} mode, batch {samples}"
            with as_compilers_see_it(plan.model.weights == "seed"):
                try:
                    reference = _whole(model, batch, mode == "train")
                except Exception as failure:  # noqa: BLE001 (whatever the user's model raises)
                    seen.fail(f"{MODEL_FAILS} {_text(failure)} ({at})")
                    continue
                try:
                    training = mode == "train"
                    ours = _composed(stages, plan, batch, training, names, reference.backward)
                except Exception as failure:  # noqa: BLE001 (however emitted code fails, it failed)
                    seen.fail(f"the stages raise {_text(failure)} ({at})")
                    continue
            seen.compare(reference, ours, at)
    what = "outputs, gradients and buffers"
    if plan.model.weights == "seed":
        what = "shapes of outputs, gradients and buffers (planned on the meta device, no weights)"
    sizes = " and ".join(map(str, batches))
    return Rung(
        name="split",
        passed=not seen.failures,
        max_abs_error=max(seen.errors.values(), default=0.0),
        tolerance=SPLIT,
        compared=seen.compared,
        detail="; ".join([what, "train and eval mode", f"batch {sizes}", *seen.remarks]),
        failures=tuple(text for _, text in sorted(seen.failures, key=lambda f: (-f[0], f[1]))[:10]),
        errors=Errors(**seen.errors),
        batch_sizes=tuple(batches),
        modes=MODES,
    )


@dataclass
class _Seen:
    """What the comparisons found so far."""

    errors: dict[str, float] = field(default_factory=dict)
    failures: list[tuple[float, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    compared: int = 0

    def fail(self, text: str) -> None:
        """Something could not be compared."""
        self.failures.append((float("inf"), text))

    def compare(self, reference: _Run, ours: _Run, at: str) -> None:
        """Compare one run of each."""
        kinds = (
            ("outputs", "gradients", "buffers") if reference.backward else ("outputs", "buffers")
        )
        if not reference.backward:
            self.remarks.append(f"no backward pass in {at}, where the model itself has none")
        for kind in kinds:
            expected, found = getattr(reference, kind), getattr(ours, kind)
            label = {"outputs": "output", "gradients": "gradient of", "buffers": "buffer"}[kind]
            for name in sorted(expected.keys() ^ found.keys()):
                self.fail(f"{label} {name} is on one side only ({at})")
            among: float | None = None
            for name in expected.keys() & found.keys():
                difference = error(found[name], expected[name])
                self.errors[kind] = max(self.errors.get(kind, 0.0), difference)
                self.compared += 1
                if difference == 0.0:
                    continue
                if among is None:  # Of every tensor, so only where it matters.
                    among = max(map(magnitude, expected.values()))
                if not close(found[name], expected[name], SPLIT, among):
                    text = f"{label} {name} differs by {difference:.2e} ({at})"
                    self.failures.append((difference, text))


def _text(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"


def _whole(model: nn.Module, inputs: Any, training: bool) -> _Run:
    with untouched(model), without_cache(model), seeded():
        model.train(training)
        model.zero_grad(set_to_none=True)
        outputs = _tensors(invoke(model, fresh(inputs)))
        roots = [output for output in outputs if output.requires_grad]
        run = _Run({str(i): output.detach().clone() for i, output in enumerate(outputs)})
        try:
            torch.autograd.backward(roots, _projections(outputs))
        except RuntimeError:
            if training:
                raise
            run.backward = False  # Nobody trains in eval mode: some models cannot.
        run.gradients = _gradients([model], first_names(model))
        run.buffers = _buffers([model])
        model.zero_grad(set_to_none=True)
    return run


def _composed(
    stages: Sequence[nn.Module],
    plan: Plan,
    inputs: Any,
    training: bool,
    names: dict[str, str],
    backward: bool,
) -> _Run:
    batch = fresh(inputs)
    values: dict[str, Any] = {entry.name: leaf(batch, entry.path) for entry in plan.model.inputs}
    received: list[dict[str, Tensor]] = []
    sent: list[dict[str, Tensor]] = []
    restore = [untouched(stage) for stage in stages]
    with seeded():
        for context in restore:
            context.__enter__()
        output: Any = None
        for stage, planned in zip(stages, plan.stages, strict=True):
            stage.train(training)
            stage.zero_grad(set_to_none=True)
            taken = {name: _arrived(values[name]) for name in planned.inputs}
            received.append(taken)
            result = stage(*taken.values())
            if planned.outputs == ("output",):
                output = result
                break
            results = result if len(planned.outputs) > 1 else (result,)
            given = dict(zip(planned.outputs, results, strict=True))
            sent.append(given)
            values.update(given)
        outputs = _tensors(output)
        run = _Run({str(i): output.detach() for i, output in enumerate(outputs)})
        if backward:
            _backward(plan, received, sent, outputs)
        run.gradients = _gradients(stages, names)
        run.buffers = _buffers(stages)
        for stage, context in zip(stages, restore, strict=True):
            stage.zero_grad(set_to_none=True)
            context.__exit__(None, None, None)
    return run


def _backward(
    plan: Plan,
    received: Sequence[dict[str, Tensor]],
    sent: Sequence[dict[str, Tensor]],
    outputs: list[Tensor],
) -> None:
    """Stage by stage from the last; the gradients of all consumers of a tensor are added."""
    roots = [output for output in outputs if output.requires_grad]
    if roots:
        torch.autograd.backward(roots, _projections(outputs))
    for index in reversed(range(len(sent))):
        tensors, gradients = [], []
        for name, tensor in sent[index].items():
            parts = [taken[name].grad for taken in received[index + 1 :] if name in taken]
            arrived = [part for part in parts if part is not None]
            if tensor.requires_grad and arrived:
                tensors.append(tensor)
                gradients.append(torch.stack(arrived).sum(0) if len(arrived) > 1 else arrived[0])
        if tensors:
            torch.autograd.backward(tensors, gradients)


def _arrived(value: Any) -> Any:
    """A tensor as a stage receives it: a leaf of its own graph."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, not those inside objects such as caches."""
    return list(tensors_in(output))


def _projections(outputs: list[Tensor]) -> list[Tensor]:
    """A fixed random gradient for every differentiable output."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.empty_like(output)
        if output.is_meta
        else torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        for output in outputs
        if output.requires_grad
    ]


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter the first name of the same parameter."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _gradients(modules: Sequence[nn.Module], names: dict[str, str]) -> dict[str, Tensor]:
    return {
        names[name]: parameter.grad.clone()
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def _buffers(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Buffers that a checkpoint holds."""
    parameters = {
        name for module in modules for name, _ in module.named_parameters(remove_duplicate=False)
    }
    return {
        name: tensor.clone()
        for module in modules
        for name, tensor in module.state_dict(keep_vars=False).items()
        if name not in parameters
    }
