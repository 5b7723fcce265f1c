"""What a device and a link can do: the few numbers that the cost model needs.

torch knows a device's name and memory, not how fast it is. A profile holds the two ceilings of a
roofline (arithmetic and memory traffic), what launching one operation costs, and the link to the
next device. One precision (float32) and one number each: no clocks or caches.
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


class Efficiency(BaseModel):
    """The share of `flops_per_s` that a class of operations reaches, above 0; 1 is all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matmul: float = Field(default=1.0, gt=0)
    conv: float = Field(default=1.0, gt=0)
    attention: float = Field(default=1.0, gt=0)


class Crowded(BaseModel):
    """How many times longer work takes while every other core of the machine does the same.

    Two processes, each on a core of its own, against one alone. 1 on GPUs, which share nothing.

    Attributes:
        arithmetic: matrix products out of the cache.
        memory: walks through tensors larger than the cache.
        overhead: tiny operations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arithmetic: float = Field(default=1.0, gt=0)
    memory: float = Field(default=1.0, gt=0)
    overhead: float = Field(default=1.0, gt=0)


# One CPU core: 0.3 ms where an operation costs 5 us.
ENGINE_OVERHEADS = 60


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
        efficiency: of classes of operations, for the analytic model.
        crowded: what other busy cores cost.
        reduce_bytes_per_s, reduce_latency_us: all-reduce between n ranks of this machine; it takes
            `reduce_latency_us * 2(n-1) + 2(n-1)/n * bytes / reduce_bytes_per_s`. None where it is
            not known: then the link's figures hold.
        reduce_tensor_us: what averaging costs for each parameter, however small.
        skew: share of its computing time that a process loses to waiting for another one, equally
            fast in the mean but not in each step, where they meet in every step.
        microbatch_us: what `torch.distributed.pipelining` costs beside computing, for each forward
            or backward of a microbatch in a stage.
        step_us: fixed cost of a step of the training loop.
        engine_us: fixed cost of a step of the decoupled engine: its slots, its messages, its
            figures; None where it was not measured: then so many overheads as on the machine where
            it was.
        cores, threads: of the machine, and those that one process computes with; information.
        bf16_flops_per_s, tf32_flops_per_s: published peaks, information.
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
    efficiency: Efficiency = Efficiency()
    crowded: Crowded = Crowded()
    reduce_bytes_per_s: float | None = Field(default=None, gt=0)
    reduce_latency_us: float | None = Field(default=None, ge=0)
    reduce_tensor_us: float = Field(default=0.0, ge=0)
    skew: float = Field(default=0.0, ge=0)
    microbatch_us: float = Field(default=300.0, ge=0)
    step_us: float = Field(default=30.0, ge=0)
    engine_us: float | None = Field(default=None, ge=0)
    cores: int | None = Field(default=None, gt=0)
    threads: int | None = Field(default=None, gt=0)
    bf16_flops_per_s: float | None = Field(default=None, gt=0)
    tf32_flops_per_s: float | None = Field(default=None, gt=0)

    @property
    def engine_step_us(self) -> float:
        """Fixed cost of a step of the decoupled engine, in microseconds."""
        known = self.engine_us
        return ENGINE_OVERHEADS * self.overhead_us if known is None else known

    def busy_us(self, flops: float, nbytes: float, efficiency: float = 1.0) -> float:
        """Microseconds of arithmetic or memory traffic, whichever is longer, without overhead.

        The roofline model (Williams, Waterman, Patterson 2009, section 3).

        Args:
            flops: floating point operations.
            nbytes: read and written.
            efficiency: share of `flops_per_s` that is reached.
        """
        return max(flops / (efficiency * self.flops_per_s), nbytes / self.bytes_per_s) * 1e6

    def operation_us(self, flops: float, nbytes: float, efficiency: float = 1.0) -> float:
        """Microseconds of one operation: its overhead and `busy_us`."""
        return self.overhead_us + self.busy_us(flops, nbytes, efficiency)

    def reduce_us(self, nbytes: float, ranks: int) -> float:
        """Microseconds of one all-reduce of `nbytes` between `ranks` devices; 0 for one."""
        if ranks < 2:
            return 0.0
        latency_us = self.reduce_latency_us
        latency_us = self.link.latency_us if latency_us is None else latency_us
        rate = self.reduce_bytes_per_s or self.link.bandwidth_bytes_per_s
        return 2 * (ranks - 1) * latency_us + 2 * (ranks - 1) / ranks * nbytes / rate * 1e6
