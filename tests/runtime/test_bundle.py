"""Reading plan.yaml: what may be edited, and one clear error for what may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import (
    check_stages,
    load_bundle,
    read_plan,
    structure_digest,
)
from dnic.runtime.plan import LrSchedulerPlan, Mode, SchedulePlan, TensorSpec, batch_multiple

Make = Callable[..., Path]
Plan = dict[str, Any]


def content(folder: Path) -> Plan:
    plan: Plan = yaml.safe_load((folder / "plan.yaml").read_text())
    return plan


def rewrite(folder: Path, plan: Plan) -> None:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))


def test_reads_what_a_run_needs(bundle: Make) -> None:
    plan = load_bundle(bundle("skip3")).plan
    assert [stage.inputs for stage in plan.stages] == [
        ("x",),
        ("stem",),
        ("right", "positive", "stem"),
    ]
    assert [(row.source, row.to, row.window) for row in plan.interfaces] == [
        (0, 1, 2),
        (0, 2, 2),
        (1, 2, 2),
    ]
    assert [tensor.name for tensor in plan.interfaces[1].differentiable] == ["stem"]
    assert plan.target is not None
    assert (plan.target.sample_shape, plan.target.classes) == ((), 5)


def test_how_it_trains(bundle: Make) -> None:
    folder = bundle("mlp3")
    train = load_bundle(folder).plan.train
    assert (train.scheduler, train.clip_norm, train.precision) == (None, None, "fp32")
    assert (train.recompute, train.compile) == (False, False)
    plan = content(folder)
    plan["train"] |= {"scheduler": {"name": "StepLR", "options": {"step_size": 2}}}
    plan["train"] |= {"clip_norm": 2, "precision": "bf16", "recompute": [2, 0], "compile": True}
    rewrite(folder, plan)
    train = load_bundle(folder).plan.train
    assert train.scheduler == LrSchedulerPlan("StepLR", {"step_size": 2}, "epoch")
    assert (train.clip_norm, train.precision) == (2, "bf16")
    assert (train.recompute, train.compile) == ((2, 0), True)


def test_a_schedule(bundle: Make) -> None:
    folder = bundle("mlp3")
    assert load_bundle(folder).plan.schedule == SchedulePlan("decoupled", None, 1)
    plan = content(folder) | {"schedule": {"mode": "ddp", "processes": 5}}
    rewrite(folder, plan)
    read = load_bundle(folder).plan
    assert read.schedule == SchedulePlan("ddp", 5, 1)
    modes: tuple[Mode, ...] = ("decoupled", "exact", "gpipe", "1f1b", "ddp", "backprop")
    assert [read.processes(mode) for mode in modes] == [3, 3, 3, 3, 5, 1]


EDITS: list[tuple[str, Callable[[Plan], Any], bool]] = [
    ("epochs", lambda p: p["train"].update(epochs=9), True),
    ("optimizer", lambda p: p["train"]["optimizer"].update(name="SGD"), True),
    ("gradient", lambda p: p["interfaces"][0].update(gradient="exact"), True),
    ("window", lambda p: p["interfaces"][0].update(window=7), True),
    ("warmup", lambda p: p["interfaces"][0].update(warmup_steps="auto"), True),
    ("head", lambda p: p["interfaces"][0]["head"].update(width=3), True),
    ("schedule", lambda p: p.update(schedule={"mode": "1f1b", "microbatches": 8}), True),
    ("reason", lambda p: p["interfaces"][0].update(reason="because"), True),
    ("to", lambda p: p["interfaces"][0].update(to=2), False),
    ("shape", lambda p: p["interfaces"][0]["tensors"][0].update(shape=["B", 9]), False),
    ("dtype", lambda p: p["interfaces"][0]["tensors"][0].update(dtype="float64"), False),
    ("flow", lambda p: p["interfaces"][0]["tensors"][0].update(differentiable=False), False),
    ("inputs", lambda p: p["stages"][1].update(inputs=["y"]), False),
    ("outputs", lambda p: p["stages"][0].update(outputs=["y"]), False),
    ("modules", lambda p: p["stages"][0]["modules"].append("more"), False),
    ("operations", lambda p: p["stages"][0]["operations"].reverse(), False),
]


@pytest.mark.parametrize(("name", "edit", "free"), EDITS, ids=[row[0] for row in EDITS])
def test_what_may_be_edited(
    bundle: Make, name: str, edit: Callable[[Plan], Any], free: bool
) -> None:
    folder = bundle("mlp2")
    plan = content(folder)
    plan["stages"][0]["operations"] = [{"name": "a"}, {"name": "b"}]
    rewrite(folder, plan)
    compiled = structure_digest(plan)
    check_stages(load_bundle(folder), compiled)
    edit(plan)
    rewrite(folder, plan)
    edited = load_bundle(folder)
    if free:
        check_stages(edited, compiled)
    else:
        with pytest.raises(RuntimeFault, match="another plan") as caught:
            check_stages(edited, compiled)
        assert "dnic compile --plan plan.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["stages.py", "model.py", "init.safetensors"])
def test_edited_and_missing_files_are_named(bundle: Make, name: str) -> None:
    folder = bundle("mlp2")
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(RuntimeFault, match=f"{name} was edited"):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(RuntimeFault, match=f"{name} is missing"):
        load_bundle(folder)


def test_train_py_may_be_edited(bundle: Make) -> None:
    folder = bundle("mlp2")
    (folder / "train.py").write_text("")
    load_bundle(folder)


BROKEN: list[tuple[Callable[[Plan], Any], str]] = [
    (lambda p: p.pop("stages"), "the key 'stages' is missing"),
    (lambda p: p["train"].pop("epochs"), "the key 'epochs' is missing"),
    (lambda p: p["train"].update(batch_size="many"), "wrong type"),
    (lambda p: p["train"].update(batch_size=0), "batch_size must be 1 or more"),
    (lambda p: p["train"].update(precision="fp16"), "precision 'fp16' is not known"),
    (lambda p: p["train"].update(clip_norm=0), "clip_norm cannot be 0"),
    (lambda p: p["train"].update(clip_norm="1"), "clip_norm cannot be '1'"),
    (lambda p: p["train"].update(clip_norm=float("inf")), "clip_norm cannot be inf"),
    (lambda p: p["train"].update(scheduler={"options": {}}), "the key 'name' is missing"),
    (
        lambda p: p["train"].update(scheduler={"name": "StepLR", "interval": "day"}),
        "interval 'day'",
    ),
    (lambda p: p["train"].update(recompute=[0, 9]), r"recompute cannot be \[0, 9\]"),
    (lambda p: p["train"].update(recompute="yes"), "recompute cannot be 'yes'"),
    (lambda p: p["train"].update(compile=1), "compile cannot be 1"),
    (lambda p: p.update(schedule={"mode": "oracle"}), "mode 'oracle' is not known"),
    (lambda p: p.update(schedule={"processes": 0}), "processes and microbatches must be 1"),
    (lambda p: p.update(schedule={"microbatches": 0}), "processes and microbatches must be 1"),
    (lambda p: p.update(schedule={"microbatches": "few"}), "wrong type"),
    (lambda p: p["interfaces"][0].update(window=0), "window 0 is too small"),
    (lambda p: p["interfaces"][0].update(gradient="a guess"), "gradient 'a guess' is not known"),
    (lambda p: p["interfaces"][0].update(head=None), "needs a head"),
    (lambda p: p["interfaces"][0].update(warmup_steps="long"), "wrong type"),
    (lambda p: p["interfaces"][0]["tensors"][0].update(shape=["2B"]), "'2B' is not a size"),
]


@pytest.mark.parametrize(("edit", "problem"), BROKEN, ids=[row[1] for row in BROKEN])
def test_broken_plans(bundle: Make, edit: Callable[[Plan], Any], problem: str) -> None:
    folder = bundle("mlp2")
    plan = content(folder)
    edit(plan)
    rewrite(folder, plan)
    with pytest.raises(RuntimeFault, match=problem):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["a: [", "\xff", "just a string", "[1, 2]", ""])
def test_no_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RuntimeFault):
        read_plan(path)
    path.unlink()
    with pytest.raises(RuntimeFault, match="not a bundle"):
        read_plan(path)


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_sizes_follow_the_batch(multiple: int, batch: int) -> None:
    assert batch_multiple(f"{multiple}*B") == multiple
    spec = TensorSpec("t", ("B", 3, f"{multiple}*B"), "float32", True)
    assert spec.resolve(batch) == (batch, 3, multiple * batch)
