"""What a user may say of the devices: how many, of which sorts, and what joins them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dnic.spec.expect import Count, complaint, expected, shown
from dnic.spec.section import Section
from dnic.spec.units import Bandwidth, Memory, Time


def printable(text: str) -> str:
    """The text, which must show something and nothing that hides."""
    if not text.strip() or not text.isprintable():
        raise ValueError
    return text


def _pair(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] != value[1]:
        return value
    raise complaint(
        f"{{}} cannot be {shown(value)}",
        expected="two different groups of devices by number, such as [0, 1]",
    )


DeviceKind = Annotated[
    Literal["auto", "cpu", "cuda"],
    expected("one of auto, cpu, cuda", {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda"}),
]
CostKind = Literal["auto", "analytic", "measured"]
Context = Literal["target", "none"]
Text = Annotated[str, AfterValidator(printable)]


class LinkSpec(Section):
    """A link between two devices."""

    bandwidth_bytes_per_s: Bandwidth = Field(
        default=25e9,
        alias="bandwidth",
        description="with a unit: MB/s, GB/s, GiB/s, Mbit/s, Gbit/s, ...",
        json_schema_extra={"default": "25GB/s"},
    )
    latency_us: Time = Field(
        default=10.0,
        alias="latency",
        description="one way, with a unit: ns, us, ms or s",
        json_schema_extra={"default": "10us"},
    )


class BetweenSpec(LinkSpec):
    """The link between the devices of two groups."""

    groups: Annotated[
        tuple[
            Annotated[int, Field(strict=True, ge=0)],
            Annotated[int, Field(strict=True, ge=0)],
        ],
        BeforeValidator(_pair),
        expected("two groups of devices by number, such as [0, 1]"),
    ] = Field(description="two numbers of groups, from 0")


class LinksSpec(Section):
    """The links between devices."""

    default: LinkSpec = Field(default=LinkSpec(), description="every link")
    between: tuple[BetweenSpec, ...] = Field(
        default=(),
        description="two groups: [{groups: [0, 1], latency: 20ms}]",
    )


class GroupSpec(Section):
    """Devices of one sort that are joined by one sort of link: a machine, as a rule."""

    count: Count = Field(default=1, description="devices in this group")
    profile: Annotated[Text, expected("the name of a device profile, or its path")] | None = Field(
        default=None, description="name or file of a device profile; null: as devices.profile"
    )
    memory: Memory = Field(default=None, description="of each device; auto: what it has")
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False), expected("a number above 0")] = Field(
        default=1.0, description="times as fast as its profile says"
    )
    link: LinkSpec | None = Field(
        default=None, description="between the devices of this group; null: the profile's own"
    )


class DevicesSpec(Section):
    """The devices to compile for; `memory` None asks the device."""

    count: Count = Field(default=2, description="devices to use, one process each")
    kind: DeviceKind = Field(default="auto", description="auto, cpu or cuda")
    memory: Memory = Field(
        default=None, description="of each device, such as 80GiB; auto: what it has"
    )
    profile: Annotated[Text, expected("auto, the name of a device profile, or its path")] = Field(
        default="auto",
        description="name or file of a device profile; auto: measure",
    )
    costs: Annotated[CostKind, expected("auto, analytic or measured", get_args(CostKind))] = Field(
        default="auto",
        description="analytic or measured; auto: measured on this machine",
    )
    groups: tuple[GroupSpec, ...] = Field(
        default=(), description="where they differ: [{count: 4, profile: H100}]"
    )
    links: LinksSpec = Field(default=LinksSpec(), description="between devices")

    @model_validator(mode="before")
    @classmethod
    def _count_of_groups(cls, value: Any) -> Any:
        """Without a count it is the sum of the groups'; what is wrong with them is said later."""
        groups = value.get("groups") if isinstance(value, dict) else None
        if not isinstance(groups, list | tuple) or not groups or "count" in value:
            return value
        counts = [g.get("count", 1) if isinstance(g, dict) else 1 for g in groups]
        if not all(type(count) is int and count > 0 for count in counts):
            return value
        return {**value, "count": sum(counts)}

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        total = sum(group.count for group in self.groups)
        if self.groups and total != self.count:
            raise complaint(
                f"{{}} is {self.count}, but the groups hold {total} devices",
                expected="the sum of the groups' counts, or no count",
                at=("count",),
            )
        for index, link in enumerate(self.links.between):
            if max(link.groups) >= len(self.groups):
                raise complaint(
                    f"{{}} names group {max(link.groups)} of {len(self.groups)}",
                    expected="numbers of devices.groups, from 0",
                    at=("links", "between", index, "groups"),
                )
        return self
