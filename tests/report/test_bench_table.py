"""The tables of a bench."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from dnic.report import bench_table


def variant(name: str, **others: Any) -> dict[str, Any]:
    parts = {"data": 1000.0, "forward": 8000.0, "backward": 20000.0, "wait": 31000.0}
    return {
        "name": name,
        "processes": 2,
        "samples_per_s": 4266.7,
        "min_samples_per_s": 4200.0,
        "max_samples_per_s": 4300.0,
        "ratio_to_one_core": 1.755,
        "ratio_to_ceiling": 0.9812,
        "wire_bytes_per_step": 2 * 2**20,
        "wire_bytes_counted": True,
        "step_us": [60000.0, 59000.0],
        "parts_us": [parts, parts | {"learn": 2.0}],
        "memory_bytes": [300 * 2**20, 310 * 2**20],
        "in_flight_bytes": None,
        "rounds": [4266.7] * 5,
    } | others


def printed(**others: Any) -> str:
    result = {
        "model": "Net",
        "batch_size": 256,
        "stages": 2,
        "cores": 2,
        "link": None,
        "rounds": 5,
        "variants": [variant("decoupled", in_flight_bytes=[3072, 1024])],
        "left_out": [],
        "relay": None,
    } | others
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(bench_table(result))
    return capture.get().replace("\N{NO-BREAK SPACE}", " ")


def test_speeds_and_parts_fit_into_80_columns() -> None:
    text = printed()
    assert "Net: 2 stages on 2 cores, batch 256, loopback, 5 rounds" in text
    speeds = next(line for line in text.splitlines() if line.startswith("decoupled "))
    assert speeds.split() == [
        "decoupled", "4,267", "4,200", "4,300", "1.75", "0.98", "2.00", "MiB", "300", "310",
    ]  # fmt: skip
    first, second = (
        next(line for line in text.splitlines() if line.startswith(f"decoupled {rank} "))
        for rank in (0, 1)
    )
    # step, forward, head, backward, update, learn, send, wait, other
    assert first.split()[2:] == [
        "60.0", "8.00", "–", "20.0", "–", "–", "–", "31.0", "1.00",
    ]  # fmt: skip
    assert second.split()[2] == "59.0"
    assert "messages under way take at most 3.00 KiB, 1.00 KiB (by rank)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_what_is_planned_what_is_left_out_and_the_relay() -> None:
    text = printed(
        variants=[variant("ddp", wire_bytes_counted=False), variant("x", processes=3)],
        left_out=[{"name": "gpipe-8", "reason": "8 does not divide the batch of 12"}],
        link={"text": "delay=5ms", "delay_us": 5000.0, "rate_bytes_per_s": None},
        relay={"packets": 1200, "bytes": 2**30, "cpu_s": 3.0, "seconds": 60.0},
        rounds=1,
    )
    assert "delay=5ms, 1 round\n" in text
    assert "~2.00 MiB" in text and "~: by the plan" in text
    assert "left out: gpipe-8: 8 does not divide the batch of 12" in text
    assert "3 ranks share 2 cores" in text
    assert "1.00 GiB in 1200 packets" in text and "5 % of the time" in text.replace("\n", " ")


def test_the_ceilings_slowest_stage() -> None:
    text = printed(variants=[variant("ceiling", slowest_stage_samples_per_s=4100.4)])
    assert "the slowest stage alone: 4,100 samples/s" in text


def test_what_was_run_once_is_named() -> None:
    once = variant("gpipe-8", rounds=[3000.0])
    assert "one round of gpipe-8: more than a tenth slower" in printed(variants=[once])
    assert "one round" not in printed()
