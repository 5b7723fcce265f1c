"""What is asked of the partition, as plain values.

The spec is the user's language (units, `auto`, defaults, names of links); the partition wants the
result of reading it. The compiler fills this in, so that no room here ever sees YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from dnic.cost.profile import Link
from dnic.errors import PartitionError

Auto = Literal["auto"]


@dataclass(frozen=True)
class InterfaceChoice:
    """How the gradient of one interface is to be obtained.

    Attributes:
        gradient: `auto` decides.
        hidden_layers: of the head, 0 to 3.
        width: of its hidden layers; None is full width, `auto` fits the stage's slack.
        context: what the head sees beside the activation.
        lr: of the head's optimizer.
        window: batches in flight; `auto` is the smallest that does not limit, at least 2.
        warmup_steps: steps on true gradients at the start.
    """

    gradient: Literal["auto", "exact", "synthetic"] = "auto"
    hidden_layers: int = 1
    width: int | Auto | None = "auto"
    context: Literal["target", "none"] = "target"
    lr: float = 1e-3
    window: int | Auto = "auto"
    warmup_steps: int | Auto = "auto"


@dataclass(frozen=True)
class Links:
    """The links between devices.

    Attributes:
        default: where nothing else is said; None is the link of the device's profile.
        between: by the pair of device indices, in either order.
    """

    default: Link | None = None
    between: Mapping[tuple[int, int], Link] = field(default_factory=lambda: MappingProxyType({}))

    def pick(self, source: int, to: int, fallback: Link) -> Link:
        """The link from one device to another."""
        found = self.between.get((source, to)) or self.between.get((to, source))
        return found or self.default or fallback


@dataclass(frozen=True)
class PartitionRequest:
    """What is asked for.

    Attributes:
        devices: how many there are; one stage on each at most.
        stages: exactly so many; None for as many as pay, `devices` at most.
        cuts: module paths or operations' names after which to cut; None to let the solver choose.
            With `stages` also given, the solver adds the cuts that are missing.
        keep_together: groups of module paths that one stage must hold.
        memory_bytes: memory of each device, one number for all, or None for unlimited.
        links: between devices.
        default: for every interface that `choices` does not name.
        choices: by the name of the interface, or of the module after which it is cut.
    """

    devices: int
    stages: int | None = None
    cuts: tuple[str, ...] | None = None
    keep_together: tuple[tuple[str, ...], ...] = ()
    memory_bytes: int | tuple[int, ...] | None = None
    links: Links = field(default_factory=Links)
    default: InterfaceChoice = field(default_factory=InterfaceChoice)
    choices: Mapping[str, InterfaceChoice] = field(default_factory=lambda: MappingProxyType({}))

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
        if self.stages is not None and not 1 <= self.stages <= self.devices:
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
    def limits_bytes(self) -> tuple[int | None, ...]:
        """Memory of each device."""
        if isinstance(self.memory_bytes, tuple):
            return self.memory_bytes
        return (self.memory_bytes,) * self.devices
