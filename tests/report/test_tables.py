"""Tables as people see them, at the width of a plain terminal, against golden text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from dnic.partition.plan import Plan
from dnic.report import comparison_table, plan_json, plan_table, result_lines, verify_table
from dnic.report.tables import shortened_modules

MakePlan = Callable[..., Plan]
GOLDEN = Path(__file__).parent / "golden"


def printed(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ").strip("\n") + "\n"


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def run(mode: str, **changed: Any) -> dict[str, Any]:
    row = {
        "mode": mode,
        "test_accuracy": 0.97,
        "test_loss": 0.1234,
        "samples_per_s": 12_345.6,
        "epochs": 5,
        "world_size": 1 if mode == "backprop" else 2,
        "ratio": 1.0 if mode == "backprop" else 1.71,
    }
    return {**row, **changed}


def test_a_plan_of_two_stages(mlp_plan: MakePlan) -> None:
    assert printed(plan_table(mlp_plan(11))) == golden("plan_two_stages")


def test_a_plan_with_several_tensors_and_every_source(transformer_plan: MakePlan) -> None:
    plan = transformer_plan(6, 9, gradients=("synthetic", "exact", "exact"))
    assert printed(plan_table(plan)) == golden("plan_three_stages")


def test_what_late_gradients_begin_with(mlp_plan: MakePlan) -> None:
    plan = mlp_plan(11)
    late = {"gradient": "stale", "warmup": "local"}
    interfaces = tuple(row.model_copy(update=late) for row in plan.interfaces)
    text = printed(plan_table(plan.model_copy(update={"interfaces": interfaces})))
    assert "gradient  stale, window 2, begins with local\n" in re.sub(r" +\n", "\n", text)


def test_a_plan_of_one_stage_has_no_interfaces(mlp_plan: MakePlan) -> None:
    plan = mlp_plan(11)
    alone = plan.model_copy(update={"stages": plan.stages[:1], "interfaces": ()})
    text = printed(plan_table(alone))
    assert "stage0" in text
    assert "interface" not in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_figure_is_cut_off(mlp_plan: MakePlan, width: int) -> None:
    text = printed(plan_table(mlp_plan(5, 11, 17)), width)
    assert max(map(len, text.splitlines())) <= width
    for figure in ("201 k", "133 k", "68.9 k", "1.17 ms", "4.50 MiB", "36 %"):
        assert figure in text


def test_names_are_not_read_as_markup(mlp_plan: MakePlan) -> None:
    plan = mlp_plan(11)
    odd = plan.interfaces[0].model_copy(update={"name": "[bold]x[/bold]", "reason": "[/red]"})
    text = printed(plan_table(plan.model_copy(update={"interfaces": (odd,)})))
    assert "[bold]x[/bold]" in text
    assert "[/red]" in text


def test_the_ladder() -> None:
    split = {"passed": True, "max_abs_error": 1.2e-7, "tolerance": 1e-5, "compared": 42}
    exact = {"passed": False, "max_abs_error": 0.1, "failures": ["loss [3] differs by 0.1"]}
    oracle = {"passed": None, "max_abs_error": 0.0, "tolerance": 0.0, "detail": "no heads"}
    result = {
        "rungs": {"split": {**split, "detail": "outputs"}, "exact": exact, "oracle": oracle},
        "passed": False,
    }
    assert printed(verify_table(result)) == golden("ladder")


def test_a_ladder_with_only_what_is_promised() -> None:
    result = {"rungs": {"split": {"passed": True, "max_abs_error": 0.0}}, "passed": True}
    assert printed(verify_table(result)).endswith("ladder: passed\n")


def test_runs_of_one_seed() -> None:
    rows = [run("decoupled", test_accuracy=None), run("backprop", ratio=None)]
    assert printed(comparison_table(rows)) == golden("one_seed")


def test_runs_of_several_seeds() -> None:
    rows = [
        run("decoupled", test_accuracy=0.97, samples_per_s=12_000.0, ratio=1.6),
        run("backprop", test_accuracy=0.98),
        run("decoupled", test_accuracy=0.98, samples_per_s=13_000.0, ratio=1.8),
        run("backprop", test_accuracy=0.98),
    ]
    assert printed(comparison_table(rows)) == golden("several_seeds")


def test_no_runs() -> None:
    assert "mode" in printed(comparison_table([]))


def test_the_last_lines_of_a_run() -> None:
    assert printed(result_lines(run("decoupled"), "runs/decoupled"), 120) == (
        "decoupled, 5 epochs, 2 processes: "
        "test accuracy 97.00 %, test loss 0.1234, 12,346 samples/s\n"
        "run: runs/decoupled\n"
    )
    bare = {"mode": "exact", "epochs": 1, "world_size": 1}
    assert printed(result_lines(bare, "x")).startswith("exact, 1 epoch, 1 process: no test data\n")


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], "–"),
        (["stem"], "stem"),
        (["blocks.0", "blocks.1"], "blocks.0, blocks.1"),
        (["stem", "blocks.0", "blocks.1", "blocks.2"], "stem, blocks.0 … blocks.2"),
        (["a.0", "a.1", "a.2", "b.3", "b.4", "b.5"], "a.0 … a.2, b.3 … b.5"),
        (["a.0", "a.2", "a.4"], "a.0, a.2, a.4"),
        (["a", "b", "c", "d", "e", "f"], "a, b, … 3 more …, f"),
    ],
)
def test_modules_in_few_words(modules: list[str], expected: str) -> None:
    assert shortened_modules(modules) == expected


def test_a_plan_as_json_can_be_read_back(transformer_plan: MakePlan) -> None:
    plan = transformer_plan(6, 9)
    content = json.loads(json.dumps(plan_json(plan), allow_nan=False))["plan"]
    assert content["interfaces"][0]["from"] == 0
    assert Plan.model_validate(content) == plan
