"""The passes of the compiler, in order: from a spec to a plan, from a plan to a bundle.

Each pass takes frozen values and returns a new one, which its own room has checked. `observe` is
told of every pass and sees its result, so that progress can be shown and any value printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import default_collate

from dnic.codegen.planfile import read_plan_file
from dnic.codegen.write import bundle_files, check_target, staged
from dnic.cost import Costs, DeviceProfile, Link, calibrate, cost_model, load_profile
from dnic.errors import SpecError, TraceError, VerifyError
from dnic.graph.build import build_graph, event_of_gap
from dnic.graph.graph import Graph
from dnic.graph.shape import Shape
from dnic.partition import (
    InterfaceChoice,
    Links,
    PartitionRequest,
    choose_cuts,
    make_plan,
)
from dnic.partition.plan import (
    Plan,
    PlannedConstant,
    PlannedInput,
    PlannedNames,
    PlannedOptimizer,
    PlannedTarget,
    PlannedTraining,
)
from dnic.proof.bundle import prove_bundle_split
from dnic.proof.proof_file import proof_file, write_proof
from dnic.proof.rung import Rung
from dnic.proof.split import MODEL_FAILS
from dnic.report.pictures import picture_files
from dnic.spec import InterfaceSpec, LinkSpec, Spec
from dnic.spec.modelfile import ModelFile, load_model_file
from dnic.trace import (
    TracedModel,
    capture_coarse,
    capture_fine,
    has_own_loss,
    opened_by,
    to_meta,
)

Observe = Callable[[str, Any], None]

# What the entry with the targets is called in samples that are mappings, the first that is there.
TARGET_KEYS = ("labels", "label", "targets", "target", "y")

PASSES = ("load", "capture", "graph", "cost", "cut", "recapture", "plan", "emit", "prove", "write")


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


@dataclass(frozen=True)
class Planned:
    """Everything that was decided, and what it was decided on."""

    loaded: Loaded
    graph: Graph
    costs: Costs
    coarse: TracedModel
    plan: Plan


def check_pass(name: str | None) -> None:
    """Refuse the name of a pass that there is not.

    Raises:
        SpecError: names the passes.
    """
    if name is not None and name not in PASSES:
        raise SpecError(
            f"there is no pass {name!r}", where="--print-after", expected=", ".join(PASSES)
        )


def silent(name: str, value: Any) -> None:
    """Observe nothing."""


def plan_model(spec: Spec, observe: Observe = silent) -> Planned:
    """Decide everything, write nothing.

    Args:
        spec: what is asked for; `model.file` must be set.
        observe: called after each pass with its name and its result.

    Raises:
        SpecError, TraceError, PartitionError: what was asked for cannot be done.
    """
    loaded = _seen(observe, "load", load(spec))
    fine = _seen(observe, "capture", capture_fine(loaded.model, loaded.inputs))
    check_loss(loaded.source, fine)
    graph = _seen(observe, "graph", build_graph(fine))
    training = training_of(spec, graph.batch_size)
    profile = device_profile(spec)
    costs = _seen(
        observe,
        "cost",
        cost_model(graph, profile, training.optimizer.name, training.optimizer.options),
    )
    request = request_of(spec, profile)
    cuts = _seen(observe, "cut", choose_cuts(graph, costs, request))
    opened = opened_by(fine, [event_of_gap(fine, gap) for gap in cuts])
    coarse = _seen(observe, "recapture", capture_coarse(fine, loaded.inputs, opened))
    plan = make_plan(
        build_graph(coarse, fine),
        graph,
        costs,
        cuts,
        request,
        training,
        target_of(loaded.target, graph),
    )
    plan = plan.model_copy(
        update={
            "model": plan.model.model_copy(
                update={
                    "names": names_of(spec, loaded.source),
                    "inputs": tuple(PlannedInput(name=n, path=p) for n, p in fine.inputs),
                    "constants": tuple(PlannedConstant(path=p, value=v) for p, v in fine.constants),
                    "target": loaded.target_key,
                    "weights": "seed" if spec.model.meta else "file",
                }
            ),
        }
    )
    return Planned(loaded, graph, costs, coarse, _seen(observe, "plan", plan))


def compile_model(
    spec: Spec, folder: Path, *, force: bool = False, observe: Observe = silent
) -> tuple[Planned, Rung]:
    """Decide, emit, prove, write.

    Args:
        spec: what is asked for.
        folder: the bundle; appears only when rung 1 of the proof ladder has passed.
        force: replace a bundle that is there; its `runs/` stay.
        observe: called after each pass with its name and its result.

    Raises:
        SpecError, TraceError, PartitionError: what was asked for cannot be done.
        VerifyError: the stages do not compute what the model computes. A bug of ours.
    """
    check_target(folder, force=force)
    planned = plan_model(spec, observe)
    source = planned.loaded.source
    files = bundle_files(planned.coarse, planned.plan, source.path.read_bytes())
    files |= picture_files(planned.plan)
    _seen(observe, "emit", files)
    with staged(folder, files) as temporary:
        rung = _seen(observe, "prove", prove_bundle_split(temporary, planned.loaded.inputs))
        write_proof(temporary, proof_file([rung], read_plan_file(temporary)))
        if not rung.passed:
            if rung.failures[0].startswith(MODEL_FAILS):
                raise VerifyError(
                    "the model fails by itself, without any stages; nothing was written",
                    where="; ".join(rung.failures[:3]),
                    expected="a model that runs forward and backward on example_inputs()",
                )
            raise VerifyError(
                "the stages do not compute what the model computes; nothing was written",
                where="; ".join(rung.failures[:3]),
                expected=f"equal within {rung.tolerance:g} of the largest magnitude",
                hint="please report this model; partition.cuts elsewhere may work",
            )
    _seen(observe, "write", folder)
    return planned, rung


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


def names_of(spec: Spec, source: ModelFile) -> PlannedNames:
    """What the emitted files call in the model file."""
    return PlannedNames(
        build=source.build_model.__name__,
        example_inputs=spec.model.example_inputs,
        loss=spec.model.loss if source.loss else None,
        train_data=spec.model.train_data if source.train_data else None,
        test_data=spec.model.test_data if source.test_data else None,
    )


def training_of(spec: Spec, batch_size: int) -> PlannedTraining:
    """How the bundle trains."""
    return PlannedTraining(
        batch_size=spec.train.batch_size or batch_size,
        epochs=spec.train.epochs,
        optimizer=PlannedOptimizer(
            name=spec.train.optimizer.name, options=dict(spec.train.optimizer.options)
        ),
        precision=spec.train.precision,
        seed=spec.train.seed,
    )


def device_profile(spec: Spec) -> DeviceProfile:
    """The device of the spec: a stock profile, a file, or this machine measured."""
    if spec.devices.profile == "auto":
        return calibrate()
    return load_profile(spec.devices.profile)


def request_of(spec: Spec, profile: DeviceProfile) -> PartitionRequest:
    """The spec in the partition's words."""
    link = spec.devices.links.default
    # A starter spec writes every default out; the profile's own link is the better guess then.
    given = link != LinkSpec()
    partition = spec.partition
    return PartitionRequest(
        devices=spec.devices.count,
        stages=None if partition.stages == "auto" else partition.stages,
        cuts=None if partition.cuts == "auto" else partition.cuts,
        keep_together=partition.keep_together,
        memory_bytes=spec.devices.memory or profile.memory_bytes,
        links=Links(
            Link(
                name="spec",
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
                latency_us=link.latency_us,
            )
            if given
            else None
        ),
        default=_choice(spec.interface("default")),
        choices={name: _choice(spec.interface(name)) for name in spec.interface_names()},
    )


def _choice(interface: InterfaceSpec) -> InterfaceChoice:
    return InterfaceChoice(
        gradient=interface.gradient,
        hidden_layers=interface.head.hidden_layers,
        width=interface.head.width,
        context=interface.head.context,
        lr=interface.head.lr,
        window=interface.window,
        warmup_steps=interface.warmup_steps,
    )


def _seen(observe: Observe, name: str, value: Any) -> Any:
    observe(name, value)
    return value
