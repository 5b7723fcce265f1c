"""What is asked of the partition, as plain values.

The spec is the user's language (units, `auto`, defaults, names of links); the partition wants the
result of reading it. The compiler fills this in, so that no room here ever sees YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from dnic.cost.profile import Link
from dnic.cost.tail import TailChoice
from dnic.errors import PartitionError
from dnic.partition.guard import DEFAULT_GUARD, PlannedGuard
from dnic.partition.predictability import NO_CONTEXT, Penalty, Predictability
from dnic.spec.spec import Schedule

Auto = Literal["auto"]
# Gradients that are waited for, on time or late: nothing predicts them.
AWAITED = ("exact", "stale")


@dataclass(frozen=True)
class InterfaceChoice:
    """How the gradient of one interface is to be obtained.

    Attributes:
        gradient: `auto` decides; else `exact`, `stale` or the name of what predicts it.
        sources: what `auto` may choose from; `stale` beside others at every second interface.
        penalty: for each source that predicts, the share of steps that it costs for the same
            quality; 0 where nothing is said, and a probe may say more.
        hidden_layers: of the head or tail, 0 to 3; `auto` is its kind's.
        width: of its hidden layers; None is full width, `auto` fits the stage's slack.
        context: whether the head sees the targets beside the activation.
        sees: names of further tensors that it sees (`dnic.partition.context`).
        lr: of the head's optimizer.
        one_in: it learns from one in so many samples of a batch; `auto` is all where that fits the
            stage's slack.
        train_every: it learns whenever so many gradients have come back.
        window: batches in flight; `auto` is the smallest that does not limit, at least 2.
        warmup: what late gradients begin with: `exact`, or what predicts without true ones; `auto`
            is a local loss where they are later than is good from the start.
        warmup_steps: steps on true gradients at the start, or with what late ones begin with.
        warmup_until: part of the variance, explained by the head, at which they end before.
        guard: of the head; None for none.
        message: float32 tensors on the way; `auto` is bf16 where the link is what limits.
        return_every: the true gradient of every so many batches comes back; 0: none does.
        tail: what a tail is scored by.
        task: weight of a virtual tail's own loss.
        options: further keys of a head that somebody registered.
        predict_weights: whether late stages go forward with the weights that they expect to have.
        stages: how many there may be in the model.
    """

    gradient: str = "auto"
    sources: tuple[str, ...] = ("synthetic", "virtual", "local", "stale")
    penalty: tuple[tuple[str, float], ...] = ()
    hidden_layers: int | Auto = "auto"
    width: int | Auto | None = "auto"
    context: Literal["target", "none"] = "target"
    sees: tuple[str, ...] = ()
    lr: float = 1e-3
    one_in: int | Auto = "auto"
    train_every: int = 1
    window: int | Auto = "auto"
    warmup: str = "auto"
    warmup_steps: int | Auto = "auto"
    warmup_until: float | None = None
    guard: PlannedGuard | None = DEFAULT_GUARD
    message: Literal["auto", "fp32", "bf16"] = "auto"
    return_every: int = 1
    tail: TailChoice = TailChoice()  # noqa: RUF009  # frozen
    task: float = 1.0
    options: tuple[tuple[str, bool | int | float | str], ...] = ()
    predict_weights: bool = False
    stages: int = 2

    @property
    def predicts(self) -> bool:
        """Whether a predicted gradient may be taken."""
        if self.gradient == "auto":
            return any(source not in AWAITED for source in self.sources)
        return self.gradient not in AWAITED

    @property
    def stale(self) -> bool:
        """Whether a decoupled interface goes on with late gradients, and no head is built."""
        if self.gradient == "auto":
            return "stale" in self.sources and not self.predicts
        return self.gradient == "stale"

    def options_of(self, source: str) -> Mapping[str, bool | int | float | str]:
        """The options of a head's own kind that differ from its defaults, as plan.yaml has them."""
        own: dict[str, bool | int | float | str] = {}
        if source in ("virtual", "local"):
            own = {"task": self.task} if source == "virtual" else {}
            own |= {"targets": self.tail.targets} if self.tail.targets != "auto" else {}
            own |= {"loss": self.tail.loss} if self.tail.loss != "auto" else {}
        return own | dict(self.options)

    def penalty_of(self, source: str) -> float:
        """The penalty of one source."""
        return dict(self.penalty).get(source, 0.0)


@dataclass(frozen=True)
class DeviceGroup:
    """Devices of one sort, numbered one after the other: a machine, as a rule.

    Attributes:
        count: how many.
        speed: how fast they run this model, where the device of the costs has 1.
        memory_bytes: of each; None for unlimited.
        link: between two of them; None for the default.
        profile: what sort they are, for messages.
    """

    count: int
    speed: float = 1.0
    memory_bytes: int | None = None
    link: Link | None = None
    profile: str = ""


@dataclass(frozen=True)
class Links:
    """The links between devices.

    Attributes:
        default: where nothing else is said; None is the link of the device's profile.
        between: by the pair of groups of devices, in either order.
    """

    default: Link | None = None
    between: Mapping[tuple[int, int], Link] = field(default_factory=lambda: MappingProxyType({}))

    def between_groups(self, one: int, other: int, fallback: Link) -> Link:
        """The link between the devices of two different groups."""
        found = self.between.get((one, other)) or self.between.get((other, one))
        return found or self.default or fallback


@dataclass(frozen=True)
class PartitionRequest:
    """What is asked for.

    Attributes:
        devices: how many there are; one stage on each at most, but for the schedules that deal
            several out.
        stages: exactly so many; None for as many as pay, `devices` at most.
        cuts: module paths or operations' names after which to cut; None to let the solver choose.
            With `stages` also given, the solver adds the cuts that are missing.
        keep_together: groups of module paths that one stage must hold.
        memory_bytes: memory of each device, one number for all, or None for unlimited.
        groups: the devices by sort, where they are not all alike; they add up to `devices`.
        schedule: how to train; `auto` is what is predicted to be fastest.
        microbatches: of pipelines.
        replicas: copies of every stage; `auto` where they pay.
        shard: whether each replica of a stage holds a part of its parameters.
        max_decoupled: predicted gradients at so many interfaces at most; None for any number.
        overlap: part of an all-reduce that runs beside the backward pass, 0 to 1: 0 on CPUs, where
            it needs the core that computes.
        crowded: whether the devices are cores of one machine, which slow one another down.
        whole_backward: why stages cannot go back in two parts; empty where they can.
        timed_heads: whether heads are built and timed on this machine, not computed.
        may_be_late: whether `auto` may take late gradients: the optimizer is one whose weights can
            be predicted, and every stage updates in every step.
        links: between devices.
        default: for every interface that `choices` does not name.
        choices: by the name of the interface, or of the module after which it is cut.
        predictability: what a probe of the model says; None without one.
    """

    devices: int
    stages: int | None = None
    cuts: tuple[str, ...] | None = None
    keep_together: tuple[tuple[str, ...], ...] = ()
    memory_bytes: int | tuple[int, ...] | None = None
    groups: tuple[DeviceGroup, ...] = ()
    schedule: Schedule = "auto"
    microbatches: int | Auto = "auto"
    replicas: int | Auto = "auto"
    shard: bool = False
    max_decoupled: int | None = None
    overlap: float = 0.0
    crowded: bool = False
    whole_backward: str = ""
    timed_heads: bool = False
    may_be_late: bool = True
    links: Links = field(default_factory=Links)
    default: InterfaceChoice = field(default_factory=InterfaceChoice)
    choices: Mapping[str, InterfaceChoice] = field(default_factory=lambda: MappingProxyType({}))
    predictability: Predictability | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a graph.

        Raises:
            PartitionError: no device, no stage, more stages than devices, or memory for another
                number of devices.
        """
        if self.devices < 1:
            raise PartitionError(
                f"{self.devices} devices asked", where="devices.count", expected="at least 1"
            )
        dealt = self.dealt_stages
        if dealt is not None and (dealt % self.devices or dealt < self.fewest_dealt):
            raise PartitionError(
                f"{dealt} stages asked for {self.devices} device(s), {self.schedule}",
                where="partition.stages" if self.stages is not None else "partition.cuts",
                expected=f"{self.fewest_dealt} stages, or another multiple of {self.devices}",
            )
        if self.stages is not None and dealt is None and not 1 <= self.stages <= self.devices:
            raise PartitionError(
                f"{self.stages} stages asked for {self.devices} device(s)",
                where="partition.stages",
                expected=f"1 to {self.devices}: one device for each stage",
            )
        if isinstance(self.memory_bytes, tuple) and len(self.memory_bytes) != self.devices:
            raise PartitionError(
                f"memory of {len(self.memory_bytes)} devices given, there are {self.devices}",
                where="devices.memory",
            )

    @property
    def sorts(self) -> tuple[DeviceGroup, ...]:
        """The groups of devices; where none are given, one for each amount of memory."""
        if self.groups:
            return self.groups
        if not isinstance(self.memory_bytes, tuple):
            return (DeviceGroup(self.devices, memory_bytes=self.memory_bytes),)
        return tuple(DeviceGroup(1, memory_bytes=nbytes) for nbytes in self.memory_bytes)

    @property
    def deals(self) -> bool:
        """Whether a schedule is asked for that may deal several stages out to a device."""
        return self.schedule in ("interleaved", "zerobubble")

    @property
    def dealt_stages(self) -> int | None:
        """The stages that are asked for, where a schedule is that deals several to a device."""
        if not self.deals or self.devices < 2:
            return None
        if self.stages is None and self.cuts is not None:
            return len(self.cuts) + 1
        return self.stages

    @property
    def fewest_dealt(self) -> int:
        """The fewest stages that the schedule which is asked for deals out."""
        return self.devices * (2 if self.schedule == "interleaved" else 1)

    def without_limits(self) -> PartitionRequest:
        """The same on devices with memory enough."""
        groups = tuple(replace(group, memory_bytes=None) for group in self.groups)
        return replace(self, groups=groups, memory_bytes=None)

    def link(self, one: int, other: int, fallback: Link) -> Link:
        """The link between a device of one group and a device of another, or of the same."""
        if one == other:
            within = self.sorts[one].link
            return within or self.links.default or fallback
        return self.links.between_groups(one, other, fallback)

    def slowest_link(self, fallback: Link) -> Link:
        """The link that the slowest pair of devices has."""
        sorts = self.sorts
        pairs = [
            (a, b)
            for a in range(len(sorts))
            for b in range(a, len(sorts))
            if a != b or sorts[a].count > 1
        ]
        links = [self.link(a, b, fallback) for a, b in pairs] or [fallback]
        return max(links, key=lambda link: (link.latency_us, -link.bandwidth_bytes_per_s))

    @property
    def replicated(self) -> bool:
        """Whether stages of several replicas are asked for."""
        return self.replicas not in ("auto", 1)

    def choice_at(self, name: str) -> InterfaceChoice:
        """What is asked for the interface of that name."""
        return self.choices.get(name, self.default)

    def penalty_at(self, gap: int, choice: InterfaceChoice, source: str, window: int) -> Penalty:
        """What a source of gradients costs at a gap of the fine capture.

        A penalty that the spec names counts before one that was measured.

        Args:
            gap: of the fine capture.
            choice: what is asked for the interface there.
            source: `synthetic`, `stale`, ...; `exact` costs nothing.
            window: steps after which the true gradient is there.
        """
        said = choice.penalty_of(source)
        if said or source == "exact" or self.predictability is None:
            return Penalty(said, "interfaces.*.penalty of the spec" if said else "")
        blind = source == "synthetic" and choice.context == "none"
        found = self.predictability.penalty(gap, NO_CONTEXT if blind else source, window)
        return found or Penalty(0.0, "")

    @property
    def free(self) -> bool:
        """Whether nothing that is asked for fixes how the model is trained or where it is cut."""
        choices = (self.default, *self.choices.values())
        return (
            self.schedule == "auto"
            and self.stages is None
            and self.cuts is None
            and all(choice.gradient == "auto" for choice in choices)
        )
