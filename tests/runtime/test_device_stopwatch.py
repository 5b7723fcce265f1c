"""Parts of a step by a device's clock: they add up, waiting is apart, and nothing stalls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dnic.runtime.device_stopwatch import DeviceStopwatch
from dnic.runtime.stopwatch import WARMUP_STEPS
from dnic.runtime.streams import CudaStreams


class Device:
    """A `torch.cuda` with one stream, which is given work of known length and does it later."""

    def __init__(self) -> None:
        self.given_s = 0.0
        self.done_s = 0.0
        self.waits = 0

    def run(self, seconds: float) -> None:
        self.given_s += seconds

    def current_stream(self, device: torch.device) -> Device:
        return self

    def synchronize(self) -> None:
        self.wait_until(self.given_s)

    def wait_until(self, moment_s: float) -> None:
        if self.done_s < moment_s:
            self.waits += 1
            self.done_s = moment_s

    def Event(self, enable_timing: bool = False) -> Event:  # noqa: N802
        return Event(enable_timing)


class Event:
    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self.at_s = 0.0

    def record(self, device: Device) -> None:
        self._device, self.at_s = device, device.given_s

    def query(self) -> bool:
        return self.at_s <= self._device.done_s

    def synchronize(self) -> None:
        self._device.wait_until(self.at_s)

    def elapsed_time(self, later: Event) -> float:
        assert self.timed and later.timed
        assert self.query() and later.query()  # CUDA refuses others
        return (later.at_s - self.at_s) * 1e3


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def streams(device: Device) -> CudaStreams:
    return CudaStreams(torch.device("cpu"), device)


@contextmanager
def waiting(streams: CudaStreams, device: Device, seconds: float) -> Iterator[None]:
    with streams.stall():
        device.run(seconds)
    yield


def step(watch: DeviceStopwatch, streams: CudaStreams, device: Device, forward_s: float) -> None:
    with waiting(streams, device, 0.25):
        device.run(0.5)
    watch.lap("receive")
    device.run(forward_s)
    watch.lap("forward")
    watch.lap("backward")
    device.run(0.125)
    watch.tick()


def test_parts_add_up_to_the_mean_step(streams: CudaStreams, device: Device) -> None:
    watch = streams.stopwatch(lambda: 0.0)
    for forward_s in (1.0, 3.0):
        step(watch, streams, device, forward_s)
    parts = watch.parts_us()
    assert parts == pytest.approx(
        {"receive": 0.5e6, "wait": 0.25e6, "forward": 2e6, "backward": 0, "rest": 0.125e6}
    )
    figures = watch.step_us()
    assert figures is not None
    assert figures == pytest.approx({"median": 2.875e6, "min": 1.875e6, "mean": 2.875e6})
    assert sum(parts.values()) == pytest.approx(figures["mean"])


def test_steps_do_not_wait_for_a_device_that_is_behind(
    streams: CudaStreams, device: Device
) -> None:
    watch = streams.stopwatch(lambda: 0.0)
    for _ in range(2 * WARMUP_STEPS + 2):
        step(watch, streams, device, 1.0)
    assert device.waits == 0 and device.done_s == 0
    assert watch.parts_us()["forward"] == pytest.approx(1e6)
    assert device.waits == 1


def test_few_events_exist_where_the_device_keeps_up(streams: CudaStreams, device: Device) -> None:
    watch: Any = streams.stopwatch(lambda: 0.0)
    for _ in range(20):
        step(watch, streams, device, 1.0)
        device.done_s = device.given_s - 1.0  # it is at the forward pass
        assert len(watch._marks) <= 2 * 4


def test_waiting_counts_to_the_end_of_the_epoch(streams: CudaStreams, device: Device) -> None:
    with waiting(streams, device, 9.0):
        pass  # before the epoch
    watch = streams.stopwatch(lambda: 0.0)
    for _ in range(4):
        step(watch, streams, device, 1.0)
    with waiting(streams, device, 0.5):
        pass  # the last gradients, after all steps
    streams.finish()
    assert watch.stalled_s() == watch.stalled_s() == pytest.approx(4 * 0.25 + 0.5)


def test_what_the_host_waited_is_waiting_too(streams: CudaStreams, device: Device) -> None:
    waited = [1.0]
    watch = streams.stopwatch(lambda: waited[0])
    for more_s in (0.25, 100.0):  # the second time longer than the device took
        waited[0] += more_s
        device.run(1.0)
        watch.lap("receive")
        watch.tick()
    assert watch.parts_us() == pytest.approx({"receive": 0.375e6, "wait": 0.625e6, "rest": 0})


def test_laps_begin_with_the_hosts_clock(
    monkeypatch: pytest.MonkeyPatch, streams: CudaStreams, device: Device
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    watch = streams.stopwatch(lambda: 0.0, keep=1)
    for _ in range(2):
        step(watch, streams, device, 1.0)
    laps = watch.laps
    assert [lap.part for lap in laps] == ["receive", "forward", "backward", "rest"]
    assert (laps[0].start_s, laps[0].end_s) == pytest.approx((101.875, 102.625))
    assert laps[0].wait_s == pytest.approx(0.25)
