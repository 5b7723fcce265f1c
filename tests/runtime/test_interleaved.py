"""Schedules that deal several stages out to a process compute what backprop computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.checkpoint import load_full_state_dict
from dnic.runtime.chunks import (
    fitting_processes,
    held_stages,
    takes_microbatches,
    usual_processes,
)
from dnic.runtime.held import HeldStages, stages_in
from dnic.runtime.launch import torchrun_command
from dnic.runtime.pipeline import check_microbatches, check_split, microbatches_of
from dnic.runtime.place import Place, check_processes
from dnic.runtime.plan import SchedulePlan
from dnic.runtime.record import Record, read_record
from dnic.runtime.stage import Stage

Make = Callable[..., Path]
Run = Callable[..., Any]

# AdamW divides by the size of a gradient and so makes much of a rounding difference.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
TRAIN = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}
# The last batch has 6 samples.
UNEVEN = ("_data(100, 1)", "_data(54, 1)")
EARLY = ("trainer.train(", "trainer.evaluate(test_batches)\n        trainer.train(")
PARTS = ("layers.0", "layers.1", "layers.2", "last")

MLP_FOUR = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "scale", "offset", "layers.0", "drop")

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[0](x * self.scale + self.offset)))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.1", "drop")

    def forward(self, first: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[1](first)))


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.2", "drop")

    def forward(self, second: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[2](second)))


class Stage3(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "last")

    def forward(self, third: Tensor) -> Tensor:
        return self.last(third)


STAGES = (Stage0, Stage1, Stage2, Stage3)
"""

# What a cut of the backward pass can get wrong: a layer used twice beside a parameter of its own, a
# parameter that crosses as it is, tensors that are views, class indices and truth values between.
RICH = """
class Rich(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.left = nn.Linear(16, 16)
        self.twice = nn.Linear(16, 16)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 16))
        self.norm = nn.LayerNorm(16)
        self.table = nn.Parameter(torch.linspace(-1, 1, 32))
        self.words = nn.Embedding(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        stem = torch.relu(self.stem(x))
        square, positive = stem.view(-1, 4, 4).transpose(1, 2), x.sum(1, keepdim=True) > 0
        left = torch.relu(self.left(square.transpose(1, 2).reshape(-1, 16)))
        left = torch.where(positive, left, left * 0.5)
        word = left.argmax(1)
        twice = self.norm(torch.tanh(self.twice(left + self.words(word))))
        twice = F.linear(twice, self.twice.weight, self.shift) + self.twice(twice) + self.shift
        return self.last(torch.tanh(twice) + self.table.view(2, 16).sum(0))


build_model = Rich
"""

RICH_FOUR = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "stem")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.relu(self.stem(x))
        return stem.view(-1, 4, 4).transpose(1, 2), x.sum(1, keepdim=True) > 0


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "left")

    def forward(self, square: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.relu(self.left(square.transpose(1, 2).reshape(-1, 16)))
        left = torch.where(positive, left, left * 0.5)
        return left, left.argmax(1)


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "twice", "shift", "norm", "table", "words")

    def forward(self, left: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        twice = self.norm(torch.tanh(self.twice(left + self.words(word))))
        twice = F.linear(twice, self.twice.weight, self.shift) + self.twice(twice) + self.shift
        return twice, self.table.view(2, 16)


class Stage3(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "last")

    def forward(self, twice: Tensor, table: Tensor) -> Tensor:
        return self.last(torch.tanh(twice) + table.sum(0))


STAGES = (Stage0, Stage1, Stage2, Stage3)
"""
FROZEN = ("self.stem = nn.Linear(12, 16)", "self.stem = nn.Linear(12, 16).requires_grad_(False)")


@pytest.fixture(name="make")
def _make(bundle: Make, rows: SimpleNamespace, kinds: Any) -> Make:
    """`mlp4` and `rich4`: four stages in a chain."""

    def make(kind: str, *replaced: tuple[str, str], **keys: Any) -> Path:
        def edit(name: str, text: str) -> str:
            for old, new in (UNEVEN, EARLY, *replaced):
                text = text.replace(old, new)
            return text

        model = kinds["mlp2"][0]
        if kind == "mlp4":
            names = ["x", "first", "second", "third", "output"]
            stages = [rows.stage(k, [names[k]], [names[k + 1]], PARTS[k]) for k in range(4)]
            cuts = [
                rows.interface(k, k + 1, rows.tensor(names[k + 1], 32), gradient="exact")
                for k in range(3)
            ]
            which = (model, MLP_FOUR, stages, cuts)
        else:
            before, after = model.split("class MLP")
            model = before + RICH.lstrip() + after.split("build_model = MLP\n", 1)[1]
            square, left = rows.tensor("square", 4, 4), rows.tensor("left", 16)
            positive = rows.tensor("positive", 1, dtype="bool", grad=False)
            word = rows.tensor("word", dtype="int64", grad=False)
            table = rows.tensor("table") | {"shape": [2, 16]}
            cuts = [
                rows.interface(0, 1, positive, square, gradient="exact"),
                rows.interface(1, 2, word, left, gradient="exact"),
                rows.interface(2, 3, rows.tensor("twice", 16), table, gradient="exact"),
            ]
            stages = [
                rows.stage(0, ["x"], ["square", "positive"], "stem"),
                rows.stage(1, ["square", "positive"], ["left", "word"], "left"),
                rows.stage(2, ["left", "word"], ["twice", "table"], "twice", "table"),
                rows.stage(3, ["twice", "table"], ["output"], "last"),
            ]
            which = (model, RICH_FOUR, stages, cuts)
        plan = {"train": TRAIN | keys.pop("train", {})} | keys
        return bundle(which, edit=edit, plan_keys=plan)

    return make


def plain(folder: Path, run: Any, user: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and the final state of the undivided model, trained by torch alone."""
    model = user.build_model()
    model.load_state_dict(load_file(folder / "init.safetensors"), strict=False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, **SGD["options"])
    losses = []
    limit = load_bundle(folder).plan.train.clip_norm
    for epoch in (1, 2):
        for (inputs,), target in run._batches.epoch(epoch):
            optimizer.zero_grad()
            loss = user.loss(model(inputs), target)
            loss.backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(trained, limit)
            optimizer.step()
            losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "mode", "processes", "asked", "replaced", "train"),
    [
        pytest.param("mlp4", "interleaved", 2, 4, (), {"clip_norm": 0.3}, id="interleaved"),
        pytest.param("rich4", "interleaved", 2, 2, (), {}, id="interleaved, rich"),
        pytest.param("rich4", "zerobubble", 2, 8, (), {"clip_norm": 0.3}, id="zero bubble, rich"),
        pytest.param("rich4", "zerobubble", 4, 4, (), {}, id="zero bubble, one stage each"),
        pytest.param("rich4", "zerobubble", 2, 4, (FROZEN,), {}, id="zero bubble, frozen"),
        pytest.param("mlp4", "zerobubble", 2, 4, (), {"recompute": [1, 2]}, id="recomputed"),
        pytest.param("rich4", "zbv", 2, 5, (), {}, id="zbv, rich"),
    ],
)
def test_equals_backprop(
    make: Make,
    run_ranks: Run,
    reference: Run,
    load_module: Run,
    kind: str,
    mode: str,
    processes: int,
    asked: int,
    replaced: tuple[tuple[str, str], ...],
    train: dict[str, Any],
    tmp_path: Path,
) -> None:
    """With an uneven last batch, and evaluations before and between."""
    folder = make(kind, *replaced, train=train)
    arguments = (f"--mode={mode}", f"--microbatches={asked}", "--no-dropout")
    run_ranks(folder, processes, *arguments, f"--record={tmp_path / 'record'}")
    found = read_record(tmp_path / "record")
    user = load_module(folder / "model.py")
    losses, state = plain(folder, reference(folder, mode="exact"), user)
    torch.testing.assert_close(found.losses, losses, rtol=0, atol=1e-6)
    assert found.parameters.keys() == state.keys()
    for name, parameter in state.items():
        torch.testing.assert_close(found.parameters[name], parameter, rtol=0, atol=1e-6, msg=name)
    result = json.loads((folder / "runs" / mode / "result.json").read_text())
    assert (result["mode"], result["microbatches"], result["world_size"]) == (
        mode,
        asked,
        processes,
    )
    exported = load_full_state_dict(folder / "runs" / mode)
    model = user.build_model().eval()
    model.load_state_dict(exported, strict=True)
    inputs, target = user.test_data().tensors
    assert result["test_loss"] == pytest.approx(user.loss(model(inputs), target).item(), rel=1e-5)
    assert result["test_samples"] == 40


@pytest.mark.processes
@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [
        ("interleaved", {"name": "AdamW", "options": {"lr": 3e-3, "fused": True}}),
        ("zbv", {"name": "AdamW", "options": {"lr": 3e-3}}),
    ],
)
def test_a_resumed_run_gives_the_same_bits(
    make: Make, run_ranks: Run, same: Run, mode: str, optimizer: Any, tmp_path: Path
) -> None:
    """With dropout, a scheduler, clipping, and the schedule from the plan."""
    scheduler = {"name": "StepLR", "options": {"step_size": 3}, "interval": "step"}
    train = {"optimizer": optimizer, "scheduler": scheduler, "clip_norm": 1.0}
    schedule = {"mode": mode, "processes": 2, "microbatches": 4}
    folder = make("mlp4", train=train, schedule=schedule)
    run_ranks(folder, 2, f"--record={tmp_path / 'whole'}")
    out = tmp_path / "out"
    run_ranks(folder, 2, f"--out={out}", "--epochs=1")
    run_ranks(folder, 2, f"--out={out}", f"--resume={out}", f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert same(Record(whole.losses[4:], whole.parameters, {}), rest)
    assert json.loads((out / "result.json").read_text())["steps"] == 8
    other = "zbv" if mode == "interleaved" else "zerobubble"
    statuses = run_ranks(folder, 2, f"--mode={other}", f"--resume={out}", "--epochs=3", fails=True)
    assert 2 in statuses
    report = json.loads((folder / "runs" / other / "failure.json").read_text())
    assert f"--mode {mode}, which deals the stages out otherwise" in report["message"]


@pytest.mark.processes
def test_a_failure_ends_all_with_one_report(
    make: Make, run_ranks: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make("mlp4", ("return self.last(third)", "raise AssertionError"))
    assert run_ranks(folder, 2, "--mode=zerobubble", fails=True) == [1, 1]
    report = json.loads((folder / "runs" / "zerobubble" / "failure.json").read_text())
    assert (report["rank"], report["stage"]) == (1, None)
    assert "[Stage 3] failed to run forward" in report["traceback"]
    assert "Full Schedule" not in capfd.readouterr().err


@pytest.mark.processes
def test_a_backward_pass_that_cannot_be_divided(make: Make, run_ranks: Run) -> None:
    from_torch = "from torch.utils.checkpoint import checkpoint\n\n        "
    forward = "return self.drop(torch.relu(self.layers[1](first)))"
    folder = make(
        "mlp4",
        (forward, f"{from_torch}return checkpoint(self.layers[1], first, use_reentrant=True)"),
    )
    assert 2 in run_ranks(folder, 2, "--mode=zerobubble", "--no-evaluate", fails=True)
    report = json.loads((folder / "runs" / "zerobubble" / "failure.json").read_text())
    assert report["user_error"]
    assert "backward pass of stage 1 cannot be done in two parts" in report["message"]
    assert "--mode interleaved or 1f1b" in report["message"]


def test_who_holds_what() -> None:
    assert [held_stages("interleaved", 6, 2, rank) for rank in (0, 1)] == [(0, 2, 4), (1, 3, 5)]
    assert [held_stages("zbv", 6, 3, rank) for rank in (0, 1, 2)] == [(0, 5), (1, 4), (2, 3)]
    assert held_stages("zerobubble", 3, 3, 1) == held_stages("exact", 3, 3, 1) == (1,)
    assert held_stages("ddp", 3, 4, 2) == (0,)


def test_how_many_processes_fit() -> None:
    assert fitting_processes("interleaved", 12) == (2, 3, 4, 6)
    assert fitting_processes("zerobubble", 4) == (2, 4)
    assert fitting_processes("zbv", 12) == (6,)
    assert fitting_processes("interleaved", 2) == fitting_processes("zbv", 2) == ()
    assert fitting_processes("interleaved", 3) == fitting_processes("zbv", 9) == ()
    assert (usual_processes("interleaved", 9), usual_processes("zerobubble", 3)) == (3, 3)


def test_numbers_of_processes_that_do_not_fit(make: Make) -> None:
    folder = make("mlp4", schedule={"mode": "interleaved", "processes": 2, "microbatches": 4})
    plan = load_bundle(folder).plan
    for count in (2, 4):
        check_processes(Place(0, 0, count, True), plan, "zerobubble")
    with pytest.raises(RuntimeFault, match="has 4 stages; torchrun started 4 processes") as caught:
        check_processes(Place(0, 0, 4, True), plan, "interleaved")
    assert caught.value.expected == "2 processes, which hold the same number each"
    assert caught.value.hint == "torchrun --standalone --nproc-per-node=2 train.py"
    with pytest.raises(RuntimeFault, match="torchrun started 3") as caught:
        check_processes(Place(0, 0, 3, True), plan, "zerobubble")
    assert caught.value.expected == "2 or 4 processes, which hold the same number each"
    two = replace(plan, stages=plan.stages[:2])
    with pytest.raises(RuntimeFault, match="this bundle has 2 stages") as caught:
        check_processes(Place(0, 0, 2, True), two, "interleaved")
    assert "zerobubble" in str(caught.value)
    assert torchrun_command(folder).split()[2:] == ["--nproc-per-node=2", f"{folder / 'train.py'}"]
    assert "--nproc-per-node=4" in torchrun_command(folder, mode="exact")
    unplanned = replace(plan, schedule=SchedulePlan())
    modes: tuple[Any, ...] = ("interleaved", "zerobubble", "zbv", "ddp")
    assert [plan.processes(mode) for mode in modes] == [2, 2, 2, 2]
    assert [unplanned.processes(mode) for mode in modes] == [2, 4, 2, 4]


def test_a_plan_with_a_number_of_processes_that_does_not_fit(make: Make) -> None:
    folder = make("mlp4", schedule={"mode": "interleaved", "processes": 3, "microbatches": 4})
    with pytest.raises(RuntimeFault, match="does not run on 3 processes") as caught:
        load_bundle(folder)
    assert caught.value.expected == "2"


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_torch_takes_the_microbatches_that_we_take(processes: int) -> None:
    """Its own check, which comes after all processes have met, and the lowering behind it."""
    from torch.distributed.pipelining import schedules

    for kind, mode in (
        (schedules.ScheduleInterleaved1F1B, "interleaved"),
        (schedules.ScheduleInterleavedZeroBubble, "zerobubble"),
        (schedules.ScheduleZBVZeroBubble, "zbv"),
    ):
        for number in range(1, 14):
            stages = [
                SimpleNamespace(
                    num_stages=2 * processes,
                    group_size=processes,
                    group_rank=0,
                    is_last=False,
                    submod=nn.Identity(),
                )
                for _ in range(2)
            ]
            try:
                kind(stages, number)  # type: ignore[arg-type]
                taken = True
            except ValueError:
                taken = False
            assert takes_microbatches(mode, processes, number) == taken  # type: ignore[arg-type]


def test_microbatches_that_fit() -> None:
    assert microbatches_of("interleaved", 20, 5, 2) == 4
    assert microbatches_of("zerobubble", 7, 7, 2) == 1
    assert microbatches_of("zbv", 7, 7, 2) == microbatches_of("1f1b", 7, 7, 2) == 7
    check_microbatches("interleaved", 16, 4, 2)
    with pytest.raises(RuntimeFault, match="zero-bubble over 3 processes") as caught:
        check_microbatches("zerobubble", 20, 2, 3)
    assert caught.value.expected == "4, 5"
    with pytest.raises(RuntimeFault, match="interleaved over 2 processes") as caught:
        check_microbatches("interleaved", 7, 7, 2)
    assert caught.value.expected == "a batch size of 2 or more"


def test_compiled_stages_are_not_divided(make: Make) -> None:
    plan = load_bundle(make("mlp4")).plan
    compiled = replace(plan, train=replace(plan.train, compile=True))
    check_split(compiled, "interleaved")
    check_split(plan, "zerobubble")
    with pytest.raises(RuntimeFault, match="a compiled stage has one"):
        check_split(compiled, "zbv")


class _Part(Stage):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _Model(nn.Module):
    """A frozen BatchNorm, a list in the middle, a buffer that is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.ones(2), persistent=False)

    def train(self, mode: bool = True) -> _Model:
        super().train(mode)
        self.norm.eval()
        return self


def test_held_stages_have_the_models_own_names() -> None:
    model = _Model()
    stages = {
        0: _Part(model, "blocks.0", "scale", "mask", "drop"),
        2: _Part(model, "blocks.2.0", "norm", "drop"),
    }
    held = HeldStages(stages)
    lost = ("blocks.1.",)
    kept = {n: t for n, t in model.state_dict().items() if not n.startswith(lost)}
    assert held.state_dict().keys() == kept.keys()
    assert "mask" in dict(held.named_buffers())
    names = [name for name, _ in held.named_parameters()]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters() if n in kept)
    assert held["blocks"][2][0] is model.blocks[2][0]  # type: ignore[index]
    assert stages_in(held, (0, 2)) == stages
    assert stages_in(stages[0], (0,)) == {0: stages[0]}
    held.train()
    assert held.training and model.drop.training and model.blocks[0].training
    assert not model.norm.training
    held.eval()
    assert not (held.training or model.drop.training or stages[2].training)
