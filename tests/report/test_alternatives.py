"""The table of ways to train, and the sentence below it."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from dnic.partition.plan import (
    Plan,
    PlannedAlternative,
    PlannedSchedule,
    PlannedVerdict,
)
from dnic.report import schedule_text, verdict_table

MakePlan = Callable[..., Plan]


def way(name: str, mode: str | None, samples_per_s: float, **changes: object) -> PlannedAlternative:
    facts: dict[str, object] = {
        "name": name,
        "mode": mode,
        "samples_per_s": samples_per_s,
        "useful_samples_per_s": samples_per_s,
        "step_us": 1e6 / samples_per_s,
        "devices": 2,
        "stages": 1,
        "microbatches": 1,
        "windows": (),
        "peak_memory_bytes": 3 << 20,
        "memory_bytes": (3 << 20, 3 << 20),
        "busy": (1.0, 0.5),
        "bubble": 0.25,
        "link_bytes": (1024,),
        "staleness": (0,),
        "bottleneck": "compute",
        "unfit": "",
        "how": "formula",
    }
    return PlannedAlternative.model_validate(facts | changes)


def told(plan: Plan, *, decouple: bool) -> str:
    predicted = plan.prediction.model_copy(
        update={
            "verdict": PlannedVerdict(
                decouple=decouple, speedup=1.7, best="decoupled", reason="because of the link"
            ),
            "alternatives": (
                way("decoupled", "decoupled", 340.0, windows=(2, 4), staleness=(0, 3)),
                way("1f1b", "1f1b", 200.0, microbatches=8),
                way("one_device", "backprop", 100.0, devices=1),
                way("interleaved_1f1b", None, 90.0),
                way("ddp", "ddp", 80.0, unfit="device 0 needs 3 GiB and has 2 GiB"),
            ),
        }
    )
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(verdict_table(plan.model_copy(update={"prediction": predicted})))
    return capture.get()


def test_the_table_and_the_verdict(transformer_plan: MakePlan) -> None:
    text = told(transformer_plan(6, 9), decouple=True)
    rows = [line.split() for line in text.splitlines()]
    assert ["decoupled,", "window", "4", "340", "3.40", "2", "3.00", "MiB", "25%", "3"] in [
        [part for cell in row for part in cell.split("\N{NO-BREAK SPACE}")] for row in rows
    ]
    assert "1F1B, 8 microbatches" in text
    assert "interleaved 1F1B (predicted" in text
    assert "DDP does not fit: device 0 needs 3 GiB and has 2 GiB" in text
    assert "cool: because of the link" in text
    assert max(map(len, text.splitlines())) <= 80


def test_meh(transformer_plan: MakePlan) -> None:
    assert "meh: because of the link" in told(transformer_plan(6, 9), decouple=False)


def test_plans_without_alternatives_have_no_table(transformer_plan: MakePlan) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(verdict_table(transformer_plan(6, 9)))
    assert capture.get().strip() == ""


def test_what_a_bundle_runs_as(transformer_plan: MakePlan) -> None:
    plan = transformer_plan(6, 9)

    def runs_as(**schedule: object) -> str:
        planned = PlannedSchedule.model_validate(schedule)
        return schedule_text(plan.model_copy(update={"schedule": planned}))

    count = len(plan.stages)
    assert runs_as() == f"decoupled on {count} processes"
    assert runs_as(mode="backprop") == "backprop on 1 process"
    assert runs_as(mode="ddp", processes=4) == "ddp on 4 processes"
    assert runs_as(mode="1f1b", microbatches=8) == f"1f1b on {count} processes, 8 microbatches"
