"""Bandwidth, time and memory, as literal tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from dnic.spec.units import (
    bandwidth_bytes_per_s,
    memory_bytes,
    text_of_bandwidth,
    text_of_memory,
    text_of_time,
    time_us,
)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("1B/s", 1.0),
        ("25GB/s", 25e9),
        ("25 GB/s", 25e9),
        (" 1.5 KB/s ", 1500.0),
        (".5MB/s", 5e5),
        ("2TB/s", 2e12),
        ("1KiB/s", 1024.0),
        ("1MiB/s", 2.0**20),
        ("3GiB/s", 3 * 2.0**30),
        ("8bit/s", 1.0),
        ("100mbit", 12.5e6),
        ("100 Mbit/s", 12.5e6),
        ("1gbit", 125e6),
        ("1Gb/s", 125e6),
        ("10Gbps", 1.25e9),
        ("10GBps", 1e10),
        ("1e3MB/s", 1e9),
    ],
)
def test_bandwidth(text: str, bytes_per_s: float) -> None:
    assert bandwidth_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("10us", 10.0),
        ("10 µs", 10.0),
        ("10 μs", 10.0),
        ("500ns", 0.5),
        ("1.5ms", 1500.0),
        ("2s", 2e6),
        ("0us", 0.0),
    ],
)
def test_time(text: str, microseconds: float) -> None:
    assert time_us(text) == microseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5KiB", 1536),
        ("512mib", 2**29),
        ("7B", 7),
        ("auto", None),
        (None, None),
    ],
)
def test_memory(text: object, size: int | None) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("25", "GB/s", "25GB", "-1GB/s", "0B/s", "25 G B/s", "1e400GB/s", "25GB/s!", "25XB/s"),
        *("1_0GB/s", "١GB/s", "", "nanGB/s", "0x1GB/s", 25, 25.0, None, True, []),
    ],
)
def test_no_bandwidth(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        bandwidth_bytes_per_s(text)


@pytest.mark.parametrize("text", ["10", 10, "10m", "10 MS", "-1us", "us", "", None, "1e400s"])
def test_no_time(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        time_us(text)


@pytest.mark.parametrize(
    "text", [80, "80", "0GiB", "0.1B", "-1GiB", "80XiB", True, [], "9" * 400 + "GiB", "1e3GiB"]
)
def test_no_memory(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        memory_bytes(text)


@settings(deadline=None)
@given(st.floats(min_value=1e-3, max_value=1e18))
def test_bandwidth_is_written_so_that_it_reads_back(bytes_per_s: float) -> None:
    assert bandwidth_bytes_per_s(text_of_bandwidth(bytes_per_s)) == bytes_per_s


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e18))
def test_time_is_written_so_that_it_reads_back(microseconds: float) -> None:
    assert time_us(text_of_time(microseconds)) == microseconds


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=2**53))
def test_memory_is_written_so_that_it_reads_back(size: int) -> None:
    assert memory_bytes(text_of_memory(size)) == size


def test_the_shortest_text_is_chosen() -> None:
    assert text_of_bandwidth(25e9) == "25GB/s"
    assert text_of_bandwidth(1536.0) == "1536B/s"
    assert text_of_time(10.0) == "10us"
    assert text_of_memory(80 * 2**30) == "80GiB"
    assert text_of_memory(80 * 10**9) == "80GB"
    assert text_of_memory(7) == "7B"
