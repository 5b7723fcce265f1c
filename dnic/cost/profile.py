"""What a device and a link can do: the few numbers that the cost model needs.

torch knows a device's name and memory, not how fast it is. A profile holds the two ceilings of a
roofline (arithmetic and memory traffic), what launching one operation costs, and the link to the
next device. One precision (float32) and one number each: no clocks, caches or contention.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Link(BaseModel):
    """What joins two devices, in one direction.

    Attributes:
        name: for messages.
        bandwidth_bytes_per_s: bytes a second, one way.
        latency_us: microseconds that an empty message takes, one way.
        source: where the numbers come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "link"
    bandwidth_bytes_per_s: float = Field(gt=0)
    latency_us: float = Field(ge=0)
    source: str = ""


class DeviceProfile(BaseModel):
    """One device.

    Attributes:
        name: for messages and for `plan.yaml`.
        flops_per_s: float32 multiply-adds counted as two, a second.
        bytes_per_s: memory traffic, reads plus writes, a second.
        overhead_us: microseconds that any operation costs, however small.
        message_bytes_per_s: bytes a second at which the device itself hands a message to the link
            or takes one from it; that time is lost to computing.
        memory_bytes: memory of the device; None when it is not to be limited.
        link: the link to the next device, where a spec says nothing else.
        source: where the numbers come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    flops_per_s: float = Field(gt=0)
    bytes_per_s: float = Field(gt=0)
    overhead_us: float = Field(ge=0)
    message_bytes_per_s: float = Field(gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    link: Link
    source: str = ""

    def busy_us(self, flops: float, nbytes: float) -> float:
        """Microseconds of arithmetic or memory traffic, whichever is longer, without overhead.

        The roofline model (Williams, Waterman, Patterson 2009, section 3).
        """
        return max(flops / self.flops_per_s, nbytes / self.bytes_per_s) * 1e6

    def operation_us(self, flops: float, nbytes: float) -> float:
        """Microseconds of one operation: its overhead and `busy_us`."""
        return self.overhead_us + self.busy_us(flops, nbytes)
