"""Figures as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnic.report import units


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.size(0), "0 B"),
        (units.size(512), "512 B"),
        (units.size(12_595), "12.3 KiB"),
        (units.size(1024**2), "1.00 MiB"),
        (units.size(80 * 1024**3), "80.0 GiB"),
        (units.count(0), "0"),
        (units.count(999), "999"),
        (units.count(117_940), "118 k"),
        (units.count(1_200_000_000), "1.20 G"),
        (units.flops(1.2e9), "1.20 GFLOP"),
        (units.flops(12), "12 FLOP"),
        (units.time(0.35), "0.35 µs"),
        (units.size(9.997 * 1024), "10.0 KiB"),
        (units.size(99.97 * 1024), "100 KiB"),
        (units.time(3200), "3.20 ms"),
        (units.time(999.7), "1.00 ms"),
        (units.time(999_999), "1.00 s"),
        (units.time(90e6), "1.50 min"),
        (units.share(0.2449), "24 %"),
    ],
)
def test_figures(written: str, expected: str) -> None:
    assert written.replace("\N{NO-BREAK SPACE}", " ") == expected


@given(st.floats(min_value=1, max_value=9e14))
def test_a_count_is_right_to_three_digits(number: float) -> None:
    digits, _, prefix = units.count(number).partition("\N{NO-BREAK SPACE}")
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(digits) * factor == pytest.approx(number, rel=0.006)
    assert len(digits.replace(".", "")) <= 3
