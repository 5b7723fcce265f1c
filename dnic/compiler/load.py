"""The user's model file, run: the model, one batch, one target, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import default_collate

from dnic.errors import TraceError
from dnic.graph.graph import Graph
from dnic.graph.shape import Shape
from dnic.partition.plan import PlannedTarget
from dnic.spec import Spec
from dnic.spec.modelfile import ModelFile, load_model_file
from dnic.trace import TracedModel, has_own_loss, to_meta

# What the entry with the targets is called in samples that are mappings, the first that is there.
TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Loaded:
    """The user's model file, run.

    `target` is one target as a batch of one, if there is one; `target_key` is the entry that holds
    it where samples are mappings.
    """

    source: ModelFile
    model: nn.Module
    inputs: Any
    target: Tensor | None
    target_key: str | None = None

    def __str__(self) -> str:
        return f"{type(self.model).__name__} from {self.source.path}\n{self.model}"


def load(spec: Spec) -> Loaded:
    """Run the model file: build the model from the seed, one batch, and look at a target.

    Raises:
        TraceError: the file does not follow the convention, or its functions fail.
    """
    if spec.model.file is None:
        raise TraceError("no model file given", expected="dnic compile MODEL.py, or model.file")
    source = load_model_file(spec.model.file, spec.model)
    torch.manual_seed(spec.train.seed)
    with torch.device("meta") if spec.model.meta else nullcontext():
        model = source.build_model()
    check_built(model, spec)
    torch.manual_seed(spec.train.seed)
    inputs = source.example_inputs()
    if spec.model.meta:
        inputs = to_meta(inputs)
    target, key = first_target(source)
    return Loaded(source, model, inputs, target, key)


def check_built(model: nn.Module, spec: Spec) -> None:
    """Refuse a model whose parameters are not there yet, or not where they were asked for.

    Raises:
        TraceError: names the first such parameter.
    """
    if type(model).__name__ in ("OptimizedModule", "ScriptModule", "RecursiveScriptModule"):
        raise TraceError(
            f"build_model() returned a compiled module ({type(model).__name__})",
            expected="the plain module: its Python code is what dnic reads",
            hint="leave torch.compile or torch.jit.script out of build_model()",
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise TraceError(
                f"the parameter {name} has no size before the first call",
                expected="a model whose parameters exist",
                hint="call the model once at the end of build_model()",
            )
        if parameter.is_meta != spec.model.meta:
            where = "the meta device" if parameter.is_meta else "a real device"
            raise TraceError(
                f"the parameter {name} is on {where}",
                expected="a model on the meta device"
                if spec.model.meta
                else "a model with weights",
                hint="--meta plans without weights; build_model() must not name a device itself",
            )


def first_target(source: ModelFile) -> tuple[Tensor | None, str | None]:
    """One target as a batch of one sample, and its key where samples are mappings.

    None without training data, where a mapping has no entry called like a target, and where the
    target is no tensor.
    """
    if source.train_data is None:
        return None, None
    dataset = source.train_data()
    try:
        sample = default_collate([dataset[0]])
        if isinstance(sample, Mapping):
            key = next((name for name in TARGET_KEYS if name in sample), None)
            target = sample[key] if key else None
        else:
            key = None
            _, target = sample
    except (TypeError, ValueError, LookupError) as error:
        raise TraceError(
            f"the first pair of {source.train_data.__name__}() cannot be read: "
            f"{type(error).__name__}: {error}",
            where=str(source.path),
            expected="a Dataset of (input, target), or of mappings of tensors",
        ) from error
    return (target, key) if isinstance(target, Tensor) else (None, None)


def target_of(sample: Tensor | None, graph: Graph) -> PlannedTarget | None:
    """Shape, dtype and number of classes of the targets.

    Integer targets are classes where the model's output has one axis more than they have: the
    last one, or axis 1 as in `cross_entropy`.
    """
    if sample is None:
        return None
    rest = tuple(sample.shape[1:])
    output = next((s for s in output_shapes(graph) if len(s) == len(rest) + 2), ())
    classes = None
    if not sample.is_floating_point() and output:
        axis = -1 if output[1:-1] == rest else 1
        size = output[axis]
        classes = size if isinstance(size, int) else None
    return PlannedTarget(
        shape=("B", *rest), dtype=str(sample.dtype).removeprefix("torch."), classes=classes
    )


def check_loss(source: ModelFile, traced: TracedModel) -> None:
    """Without a loss function in the file the model's output must hold a loss.

    Raises:
        TraceError: it does not.
    """
    if source.loss is not None or has_own_loss(traced):
        return
    raise TraceError(
        "the model file has no loss, and the model's output holds none",
        where=str(source.path),
        expected="loss(output, target) -> a scalar tensor; or an output with a scalar `loss`",
        hint="example_inputs() with `labels`, if the model computes its loss from these",
    )


def output_shapes(graph: Graph) -> Iterator[Shape]:
    """Shapes of the tensors in the model's output, through the objects that it is wrapped in."""
    waiting = list(graph.operations[-1].inputs)
    while waiting:
        op = graph.by_name[waiting.pop(0)]
        if op.value is not None:
            yield op.value.shape
        elif op.kind == "function":
            waiting += op.inputs
