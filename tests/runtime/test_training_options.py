"""Precision, clipping, schedulers and recomputation against plain torch, and the reference.

`plain` is what a person would write without dnic: the undivided model, `torch.autocast`,
`clip_grad_norm_`, a scheduler, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dnic.runtime.batches import Batches
from dnic.runtime.bundle import load_bundle
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

# Shows small differences as they are; AdamW divides by the size of a gradient.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
ONE_CYCLE = {
    "name": "OneCycleLR",
    "options": {"max_lr": 0.2, "total_steps": 14, "pct_start": 0.4},
    "interval": "step",
}
WARM_COSINE = {
    "name": "SequentialLR",
    "options": {
        "schedulers": [
            {"name": "LinearLR", "options": {"start_factor": 0.1, "total_iters": 5}},
            {"name": "CosineAnnealingLR", "options": {"T_max": 9}},
        ],
        "milestones": [5],
    },
    "interval": "step",
}
STEP = {"name": "StepLR", "options": {"step_size": 1, "gamma": 0.1}, "interval": "epoch"}

# One weight in two stages; without names of their own in the state.
TIED = (
    "self.drop = nn.Dropout(0.1)",
    "self.layers[2].weight = self.layers[1].weight\n        self.drop = nn.Dropout(0.1)",
)
SHARED = [{"name": "layers.1.weight", "aliases": ["layers.2.weight"], "owner": 0, "holders": [1]}]


def train(optimizer: dict[str, Any] = SGD, **keys: Any) -> dict[str, Any]:
    return {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": optimizer, **keys}


def tied(name: str, text: str) -> str:
    return text.replace(*TIED) if name == "model.py" else text


def plain(folder: Path, load_module: Run) -> Record:
    """Backpropagation of the whole model with the plan's options, without dropout."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())["train"]
    file = load_module(folder / "model.py")
    model: nn.Module = file.build_model()
    model.load_state_dict(load_file(folder / "init.safetensors"), strict=False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    used = plan["optimizer"]
    optimizer = getattr(torch.optim, used["name"])(model.parameters(), **used["options"])
    scheduler = made(plan.get("scheduler"), optimizer)
    samples = load_bundle(folder).plan.samples
    batches = Batches(
        file.train_data(), 16, shuffle=True, seed=3, loader_options={}, samples=samples
    )
    losses = []
    for epoch in range(1, plan["epochs"] + 1):
        for (inputs,), target in batches.epoch(epoch):
            with torch.autocast(
                "cpu", torch.bfloat16, enabled=plan.get("precision", "fp32") == "bf16"
            ):
                loss = file.loss(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            if plan.get("clip_norm") is not None:
                norm = nn.utils.clip_grad_norm_(model.parameters(), plan["clip_norm"])
                assert norm > plan["clip_norm"]  # or the test could not fail
            optimizer.step()
            losses.append(float(loss.detach()))
            if scheduler is not None and plan["scheduler"]["interval"] == "step":
                scheduler.step()
        if scheduler is not None and plan["scheduler"]["interval"] == "epoch":
            scheduler.step()
    return Record(losses, dict(model.state_dict()), {})


def made(row: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> Any:
    if row is None:
        return None
    options = dict(row["options"])
    if "schedulers" in options:
        options["schedulers"] = [made(inner, optimizer) for inner in options["schedulers"]]
    return getattr(torch.optim.lr_scheduler, row["name"])(optimizer, **options)


def failure(out: Path) -> str:
    """What a run that failed has told."""
    message: str = json.loads((out / "failure.json").read_text())["message"]
    return message


def close(run: Record, expected: Record, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(run.losses, expected.losses, rtol=tolerance, atol=tolerance)
    parameters: dict[str, Tensor] = {name: run.parameters[name] for name in expected.parameters}
    torch.testing.assert_close(parameters, expected.parameters, rtol=tolerance, atol=tolerance)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "edit", "keys"),
    [
        pytest.param("mlp2", None, {"precision": "bf16"}, id="bf16"),
        pytest.param("mlp2", None, {"clip_norm": 0.05}, id="clip_norm"),
        pytest.param("mlp2", tied, {"clip_norm": 0.05}, id="clip_norm tied"),
        pytest.param("mlp2", None, {"scheduler": ONE_CYCLE}, id="each step"),
        pytest.param("mlp2", None, {"scheduler": STEP}, id="each epoch"),
        pytest.param("conv2", None, {"recompute": True}, id="recompute with BatchNorm"),
        pytest.param(
            "conv2",
            None,
            {"recompute": [1], "clip_norm": 0.05, "scheduler": WARM_COSINE, "precision": "bf16"},
            id="all",
        ),
    ],
)
def test_exact_stages_equal_plain_torch(
    bundle: Make,
    run_ranks: Run,
    load_module: Run,
    kind: str,
    edit: Any,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    """100 samples in batches of 16: the last one has 4. Buffers are compared, too."""
    shared: dict[str, Any] = {} if edit is None else {"edit": edit}
    plan_keys = {"train": train(**keys)} | ({"shared": SHARED} if edit else {})
    folder = bundle(kind, plan_keys=plan_keys, **shared)
    run_ranks(folder, 2, "--mode=exact", "--no-dropout", f"--record={tmp_path / 'record'}")
    run = read_record(tmp_path / "record")
    expected = plain(folder, load_module)
    assert len(run.losses) == 14
    assert run.parameters.keys() >= expected.parameters.keys()
    close(run, expected, 1e-5 if kind == "mlp2" or "precision" not in keys else 1e-3)
    fewer = {"train": train()} | ({"shared": SHARED} if edit else {})
    without = plain(bundle(kind, plan_keys=fewer, **shared), load_module)
    if "recompute" not in keys or len(keys) > 1:
        assert without.losses[-3:] != pytest.approx(expected.losses[-3:], rel=1e-4)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("mode", "processes"), [("backprop", 1), ("ddp", 2), ("gpipe", 2), ("1f1b", 2), ("oracle", 2)]
)
def test_other_modes_equal_plain_torch(
    bundle: Make, run_ranks: Run, load_module: Run, mode: str, processes: int, tmp_path: Path
) -> None:
    """Microbatches and shares are summed in another order, hence the options without rounding."""
    options = {"clip_norm": 0.05, "scheduler": WARM_COSINE, "recompute": True}
    folder = bundle("mlp2", plan_keys={"train": train(**options)})
    record = tmp_path / "record"
    run_ranks(folder, processes, f"--mode={mode}", "--no-dropout", f"--record={record}")
    close(read_record(record), plain(folder, load_module))


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["gpipe", "ddp"])
def test_parts_of_batches_in_bf16(
    bundle: Make, run_ranks: Run, load_module: Run, mode: str, tmp_path: Path
) -> None:
    """Sums of bfloat16 gradients round differently in parts of a batch."""
    slow = {"name": "SGD", "options": {"lr": 0.02}}
    folder = bundle("mlp2", plan_keys={"train": train(slow, precision="bf16", recompute=True)})
    record = tmp_path / "record"
    run_ranks(folder, 2, f"--mode={mode}", "--no-dropout", f"--record={record}")
    close(read_record(record), plain(folder, load_module), 2e-3)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "processes", "mode", "keys"),
    [
        pytest.param("mlp3", 3, "decoupled", {"recompute": True}, id="recompute, dropout"),
        pytest.param(
            "conv2",
            2,
            "decoupled",
            {"precision": "bf16", "clip_norm": 0.01, "scheduler": ONE_CYCLE, "recompute": [0]},
            id="all",
        ),
        pytest.param("skip3", 3, "decoupled", {"precision": "bf16", "scheduler": STEP}, id="skip"),
        pytest.param("mlp3", 3, "exact", {"clip_norm": 0.05}, id="clip over three"),
    ],
)
def test_engine_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    processes: int,
    mode: str,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Evaluated before, between and after; the reference recomputes and evaluates nothing."""

    def edit(name: str, text: str) -> str:
        evaluate = "        trainer.evaluate(test_batches)\n"
        step = "        trainer.train(train_batches)\n"
        return text.replace(step, evaluate + step + evaluate) if name == "train.py" else text

    folder = bundle(kind, warmup_steps=2, edit=edit, plan_keys={"train": train(**keys)})
    run_ranks(folder, processes, f"--mode={mode}", f"--record={tmp_path / 'record'}")
    run = read_record(tmp_path / "record")
    assert same(run, reference(folder, mode=mode).run())


def test_the_reference_clips_what_each_stage_has(bundle: Make, reference: Run, same: Run) -> None:
    """A tied weight's gradient is clipped at its owner, in the last update of an epoch, too."""
    records = {}
    for limit in (None, 0.02, 1e9):
        keys = {"train": train(clip_norm=limit), "shared": SHARED}
        folder = bundle("mlp2", edit=tied, plan_keys=keys)
        records[limit] = reference(folder).run()
    assert same(records[None], records[1e9])
    assert records[None].losses[:1] == records[0.02].losses[:1]
    assert records[None].losses[2:] != records[0.02].losses[2:]


@pytest.mark.processes
def test_a_tied_weight_is_clipped_as_in_the_reference(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    keys = {"train": train(clip_norm=0.02), "shared": SHARED}
    folder = bundle("mlp2", edit=tied, plan_keys=keys)
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


@pytest.mark.processes
@pytest.mark.parametrize("scheduler", [WARM_COSINE, STEP], ids=["step", "epoch"])
def test_a_resumed_run_gives_the_same_bits(
    bundle: Make, run_ranks: Run, same: Run, scheduler: dict[str, Any], tmp_path: Path
) -> None:
    options = {"clip_norm": 0.05, "scheduler": scheduler, "precision": "bf16", "recompute": True}
    folder = bundle("mlp2", plan_keys={"train": train(**options)})
    run_ranks(folder, 2, f"--record={tmp_path / 'whole'}", "--no-checkpoint")
    out = tmp_path / "parts"
    run_ranks(folder, 2, f"--out={out}", "--epochs=1")
    run_ranks(folder, 2, f"--out={out}", f"--resume={out}", f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), rest)


@pytest.mark.processes
def test_a_checkpoint_of_another_scheduler_is_refused(
    bundle: Make, run_ranks: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2", plan_keys={"train": train(scheduler=STEP)})
    run_ranks(folder, 1, "--mode=backprop", f"--out={tmp_path}", "--epochs=1")
    resume = ("--mode=backprop", f"--resume={tmp_path}", "--no-scheduler")
    assert run_ranks(folder, 1, *resume, fails=True) == [2]
    told = failure(folder / "runs/backprop")
    assert "was trained with the scheduler StepLR, and plan.yaml says None" in told


@pytest.mark.processes
def test_plateau_follows_what_every_process_evaluates(
    bundle: Make, run_ranks: Run, tmp_path: Path
) -> None:
    """As if larger losses were better: the second epoch disappoints, then every further one."""
    plateau = {
        "name": "ReduceLROnPlateau",
        "options": {"mode": "max", "patience": 0, "factor": 0.5},
    }
    keys = train(scheduler=plateau, epochs=4)
    folder = bundle("mlp2", plan_keys={"train": keys})
    run_ranks(folder, 2, "--mode=exact", f"--out={tmp_path / 'out'}")
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [row["test_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert [row["lr"] for row in rows] == [0.1, 0.1, 0.05, 0.025]

    assert run_ranks(folder, 2, "--no-evaluate", fails=True) == [2, 2]
    assert "ReduceLROnPlateau follows the loss of evaluations" in failure(folder / "runs/decoupled")
    script = folder / "train.py"
    script.write_text(script.read_text().replace("        trainer.evaluate(test_batches)\n", ""))
    assert run_ranks(folder, 2, "--mode=exact", fails=True) == [2, 2]
    assert "nothing was evaluated after epoch 1" in failure(folder / "runs/exact")


@pytest.mark.processes
def test_a_scheduler_may_be_given_by_hand(
    bundle: Make, run_ranks: Run, load_module: Run, tmp_path: Path
) -> None:
    def edit(name: str, text: str) -> str:
        return text.replace(
            "loss=model.loss)",
            "loss=model.loss, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1))",
        ).replace("import model\n", "import model\nimport torch\n")

    folder = bundle("mlp2", edit=edit, plan_keys={"train": train()})
    record = tmp_path / "record"
    run_ranks(folder, 1, "--mode=backprop", "--no-dropout", f"--record={record}")
    planned = bundle("mlp2", plan_keys={"train": train(scheduler=STEP)})
    close(read_record(record), plain(planned, load_module))
