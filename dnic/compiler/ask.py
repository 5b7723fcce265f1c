"""The spec in the words of the rooms that come after it."""

from __future__ import annotations

from dnic.cost import DeviceProfile, Link, TailChoice, cost_model, load_profile
from dnic.errors import RuntimeFault, SpecError
from dnic.graph.graph import Graph
from dnic.graph.shape import Shape
from dnic.partition import InterfaceChoice, Links, PartitionRequest
from dnic.partition.guard import PlannedGuard
from dnic.partition.plan import (
    PlannedLrScheduler,
    PlannedNames,
    PlannedOptimizer,
    PlannedTraining,
)
from dnic.partition.request import DeviceGroup
from dnic.runtime.foresight import foreseeable
from dnic.runtime.plan import AWAITED, HeadPlan
from dnic.runtime.registry import predictor_kind
from dnic.spec import InterfaceSpec, LinkSpec, Spec
from dnic.spec.devices import GroupSpec
from dnic.spec.guard import GuardSpec
from dnic.spec.modelfile import ModelFile


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
    scheduler = spec.train.scheduler
    return PlannedTraining(
        batch_size=spec.train.batch_size or batch_size,
        epochs=spec.train.epochs,
        optimizer=PlannedOptimizer(
            name=spec.train.optimizer.name, options=dict(spec.train.optimizer.options)
        ),
        scheduler=None
        if scheduler is None
        else PlannedLrScheduler(
            name=scheduler.name, options=scheduler.options, interval=scheduler.interval
        ),
        clip_norm=spec.train.clip_norm,
        precision=spec.train.precision,
        recompute=spec.train.recompute,
        compile=spec.train.compile,
        update_probability=spec.train.update_probability,
        seed=spec.train.seed,
    )


def device_profile(spec: Spec) -> DeviceProfile:
    """The device that costs are computed for: the spec's, or its first group's.

    A stock profile, a file, or this machine as calibrated.

    Raises:
        SpecError: there is no such profile, or the file is wrong.
    """
    first = spec.devices.groups[0].profile if spec.devices.groups else None
    return load_profile(first or spec.devices.profile)


def is_gpu(spec: Spec, profile: DeviceProfile) -> bool:
    """Whether the devices are GPUs; profiles of CPUs name no memory of their own."""
    if spec.devices.kind != "auto":
        return spec.devices.kind == "cuda"
    return profile.memory_bytes is not None


def measures(spec: Spec) -> bool:
    """Whether operations are measured here: asked for, or this machine is what is planned for."""
    devices = spec.devices
    if devices.costs != "auto":
        return devices.costs == "measured"
    here = devices.profile == "auto" and not any(group.profile for group in devices.groups)
    return here and not spec.model.meta


def request_of(spec: Spec, profile: DeviceProfile, graph: Graph) -> PartitionRequest:
    """The spec in the partition's words.

    Args:
        spec: as given.
        profile: of the device that costs are computed for.
        graph: how fast other sorts of devices are depends on what they run.
    """
    devices, partition = spec.devices, spec.partition
    # A starter spec writes every default out; the profile's own link is the better guess then.
    given = devices.links.default != LinkSpec()
    groups = _groups(devices.groups, profile, spec, graph)
    output, most = _output(graph), _most_stages(spec)
    return PartitionRequest(
        devices=devices.count,
        stages=None if partition.stages == "auto" else partition.stages,
        cuts=None if partition.cuts == "auto" else partition.cuts,
        keep_together=partition.keep_together,
        memory_bytes=devices.memory or profile.memory_bytes,
        groups=groups,
        schedule=partition.schedule,
        microbatches=partition.microbatches,
        replicas=partition.replicas,
        shard=partition.shard,
        max_decoupled=partition.max_decoupled_interfaces,
        timed_heads=measures(spec),
        may_be_late=_may_be_late(spec),
        overlap=1.0 if is_gpu(spec, profile) else 0.0,
        whole_backward=_whole_backward(spec),
        crowded=not is_gpu(spec, profile) and all(group.count > 1 for group in groups),
        links=Links(
            _link(devices.links.default) if given else None,
            {link.groups: _link(link) for link in devices.links.between},
        ),
        default=_choice(spec.interface("default"), output, most),
        choices={
            name: _choice(spec.interface(name), output, most) for name in spec.interface_names()
        },
    )


def _whole_backward(spec: Spec) -> str:
    """Why the backward pass is one piece; empty where it may be done in two."""
    if spec.train.compile:
        return "compiled stages go back in one piece"
    return "recomputed stages go back in one piece" if spec.train.recompute else ""


def _may_be_late(spec: Spec) -> bool:
    """Whether late stages can go forward with predicted weights, and all stages always update."""
    train = spec.train
    foreseen = foreseeable(train.optimizer.name, dict(train.optimizer.options))
    return foreseen and train.update_probability == 1


def _groups(
    groups: tuple[GroupSpec, ...], profile: DeviceProfile, spec: Spec, graph: Graph
) -> tuple[DeviceGroup, ...]:
    """The groups of devices, with their speed on this model beside that of `profile`."""
    return tuple(_group(group, profile, spec, graph) for group in groups)


def _group(group: GroupSpec, profile: DeviceProfile, spec: Spec, graph: Graph) -> DeviceGroup:
    own = load_profile(group.profile) if group.profile else profile
    speed = 1.0
    if own != profile:
        optimizer = spec.train.optimizer
        whole_us = [
            sum(cost_model(graph, one, optimizer.name, dict(optimizer.options)).total_us)
            for one in (profile, own)
        ]
        speed = whole_us[0] / whole_us[1]
    return DeviceGroup(
        count=group.count,
        speed=speed * group.speed,
        memory_bytes=group.memory or spec.devices.memory or own.memory_bytes,
        link=_link(group.link) if group.link else own.link,
        profile=own.name,
    )


def _link(link: LinkSpec) -> Link:
    return Link(
        name="spec",
        bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
        latency_us=link.latency_us,
    )


def _guard(guard: GuardSpec) -> PlannedGuard | None:
    if not guard.enabled:
        return None
    return PlannedGuard.model_validate(guard.model_dump(exclude={"enabled"}))


def check_sources(spec: Spec) -> None:
    """Refuse a source of gradients that nobody has registered; the model file has been run.

    Raises:
        SpecError: names the interface, and the sources that there are.
    """
    for name in ("default", *spec.interface_names()):
        interface = spec.interface(name)
        free = interface.gradient == "auto"
        named = {
            "gradient": (interface.gradient,),
            "warmup": (interface.warmup,),
            "sources": interface.sources,
        }
        for key, asked in named.items():
            for source in asked:
                if source in (*AWAITED, "auto"):
                    continue
                try:
                    kind = predictor_kind(source)
                    # Of those that may be taken each is given the options.
                    if interface.head.options and (key != "sources" or free):
                        kind.options_of(HeadPlan(options=interface.head.options))
                except RuntimeFault as error:
                    raise SpecError(
                        error.problem,
                        where=f"interfaces.{name}.{key}",
                        expected=error.expected,
                        hint=error.hint,
                    ) from error


def _output(graph: Graph) -> Shape | None:
    """The shape of what the model returns, where that is one tensor."""
    returned = [op for op in graph.operations if op.kind == "output"]
    names = returned[0].inputs if returned else ()
    found = [op.value for op in graph.operations if op.name in names]
    return found[0].shape if len(found) == 1 and found[0] is not None else None


def _most_stages(spec: Spec) -> int:
    """How many stages there may be: as many as devices, where nothing is said of them."""
    partition = spec.partition
    if partition.cuts != "auto":
        return len(partition.cuts) + 1
    return spec.devices.count if partition.stages == "auto" else partition.stages


def _choice(interface: InterfaceSpec, output: Shape | None, stages: int) -> InterfaceChoice:
    asked = interface.head.context
    named = (asked,) if isinstance(asked, str) else asked
    return InterfaceChoice(
        gradient=interface.gradient,
        sources=interface.sources,
        penalty=tuple(interface.penalty.model_dump().items()),
        hidden_layers=interface.head.hidden_layers,
        width=interface.head.width,
        context="target" if "target" in named else "none",
        sees=tuple(name for name in named if name not in ("target", "none")),
        lr=interface.head.lr,
        one_in=interface.head.one_in,
        train_every=interface.head.train_every,
        window=interface.window,
        warmup=interface.warmup,
        warmup_steps=interface.warmup_steps,
        warmup_until=interface.warmup_until,
        guard=_guard(interface.guard),
        message=interface.message,
        return_every=interface.return_every,
        tail=TailChoice(interface.head.targets, interface.head.loss, output),
        task=interface.head.task,
        options=tuple(interface.head.options.items()),
        predict_weights=interface.predict_weights,
        stages=stages,
    )
