"""torch's pipeline schedules over a bundle's stages compute what backprop computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.cells import Cell, cut
from dnic.runtime.launch import RankFault, launch
from dnic.runtime.microbatches import microbatches
from dnic.runtime.pipeline import check_chain, check_microbatches
from dnic.runtime.place import Place, check_processes
from dnic.runtime.plan import InputSpec, SharedPlan
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

# AdamW divides by the size of a gradient and so makes much of a rounding difference.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
TRAIN = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}

# Two tensors between neighbours, one of them without a gradient, one not contiguous, given and
# taken in another order than the interface lists them.
SQUARES = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "stem")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.relu(self.stem(x))
        return stem.view(-1, 4, 4).transpose(1, 2), x.sum(1, keepdim=True) > 0


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "left", "right", "last")

    def forward(self, square: Tensor, positive: Tensor) -> Tensor:
        stem = square.transpose(1, 2).reshape(-1, 16)
        right = torch.relu(self.right(stem)) + torch.relu(self.left(stem))
        return self.last(torch.where(positive, right, right * 0.5) + stem)


STAGES = (Stage0, Stage1)
"""


@pytest.fixture(name="make")
def _make(bundle: Make, rows: SimpleNamespace, kinds: Any) -> Make:
    """Bundles of every kind, with an optimizer that shows small differences as they are."""

    def make(kind: str, *, replaced: tuple[str, str] = ("", ""), **keys: Any) -> Path:
        def edit(name: str, text: str) -> str:
            return text.replace(*replaced) if replaced[0] else text

        which: Any = kind
        if kind == "squares2":
            stages = [
                rows.stage(0, ["x"], ["square", "positive"], "stem"),
                rows.stage(1, ["square", "positive"], ["output"], "left", "right", "last"),
            ]
            square = rows.tensor("square", 4, 4)
            positive = rows.tensor("positive", 1, dtype="bool", grad=False)
            cut01 = rows.interface(0, 1, positive, square)
            which = (kinds["skip3"][0], SQUARES, stages, [cut01])
        return bundle(which, edit=edit, plan_keys={"train": TRAIN} | keys)

    return make


def last_batch(samples: int) -> tuple[str, str]:
    """Training data whose last batch has `samples - 96` samples."""
    return "_data(100, 1)", f"_data({samples}, 1)"


FROZEN = ("self.stem = nn.Linear(12, 16)", "self.stem = nn.Linear(12, 16).requires_grad_(False)")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "mode", "processes", "replaced"),
    [
        pytest.param("mlp2", "gpipe", 2, last_batch(99), id="gpipe 2"),
        pytest.param("mlp3", "gpipe", 3, last_batch(98), id="gpipe 3"),
        pytest.param("mlp2", "1f1b", 2, last_batch(98), id="1f1b 2"),
        pytest.param("mlp3", "1f1b", 3, last_batch(97), id="1f1b 3"),
        pytest.param("squares2", "gpipe", 2, last_batch(99), id="gpipe squares"),
        pytest.param("squares2", "1f1b", 2, last_batch(99), id="1f1b squares"),
        pytest.param("squares2", "1f1b", 2, FROZEN, id="frozen first stage"),
    ],
)
def test_equals_backprop(
    make: Make,
    run_ranks: Run,
    kind: str,
    mode: str,
    processes: int,
    replaced: tuple[str, str],
    tmp_path: Path,
) -> None:
    folder = make(kind, replaced=replaced)
    for asked, ranks in ((mode, processes), ("backprop", 1)):
        arguments = (f"--mode={asked}", "--no-dropout", f"--record={tmp_path / asked}")
        run_ranks(folder, ranks, *arguments)
    run, backprop = read_record(tmp_path / mode), read_record(tmp_path / "backprop")
    assert len(run.losses) == 14
    torch.testing.assert_close(run.losses, backprop.losses, rtol=1e-5, atol=1e-6)
    assert run.parameters.keys() == backprop.parameters.keys()
    torch.testing.assert_close(run.parameters, backprop.parameters, rtol=1e-5, atol=1e-6)
    results = [
        json.loads((folder / "runs" / asked / "result.json").read_text())
        for asked in (mode, "backprop")
    ]
    assert [result["microbatches"] for result in results] == [4, 1]
    assert results[0]["test_samples"] == 40
    for figure in ("test_accuracy", "test_loss", "train_loss"):
        assert results[0][figure] == pytest.approx(results[1][figure], rel=1e-5)


@pytest.mark.processes
def test_a_resumed_run_gives_the_same_bits(
    make: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    """With dropout, evaluation between the epochs, and the schedule from the plan."""
    folder = make("mlp2", schedule={"mode": "1f1b", "microbatches": 2})
    run_ranks(folder, 2, f"--record={tmp_path / 'whole'}")
    resumed = tmp_path / "resumed"
    run_ranks(folder, 2, f"--out={resumed}", "--epochs=1")
    run_ranks(
        folder, 2, f"--out={resumed}", f"--resume={resumed}", f"--record={tmp_path / 'parts'}"
    )
    whole, parts = read_record(tmp_path / "whole"), read_record(tmp_path / "parts")
    assert same(Record(whole.losses[7:], whole.parameters, {}), parts)
    result = json.loads((resumed / "result.json").read_text())
    assert (result["mode"], result["microbatches"], result["steps"]) == ("1f1b", 2, 14)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("failure", "said", "unsaid"),
    [
        pytest.param("assert not self.training", "AssertionError", None, id="a failing stage"),
        pytest.param(
            "hidden = hidden[:2]", "hidden of a microbatch of 4", "Traceback", id="another shape"
        ),
    ],
)
def test_a_failure_ends_all_with_one_report(
    make: Make, failure: str, said: str, unsaid: str | None
) -> None:
    forward = "return self.drop(torch.relu(self.layers[1](x)))\n"
    failing = f"hidden = self.drop(torch.relu(self.layers[1](x)))\n        {failure}\n"
    folder = make("mlp2", replaced=(forward, f"{failing}        return hidden\n"))
    with pytest.raises(RankFault, match=r"rank 0 \(stage 0\) failed") as caught:
        launch(folder, mode="gpipe")
    assert said in caught.value.report
    assert unsaid is None or unsaid not in caught.value.report


def test_what_is_no_chain_is_refused(bundle: Make) -> None:
    plan = load_bundle(bundle("skip3")).plan
    with pytest.raises(RuntimeFault, match="positive, stem of the interface cut02") as caught:
        check_chain(plan, "gpipe")
    assert "mode: exact" in str(caught.value)
    chain = replace(plan, interfaces=tuple(i for i in plan.interfaces if i.name != "cut02"))
    assert [interface.name for interface in check_chain(chain, "gpipe")] == ["cut01", "cut12"]
    with pytest.raises(RuntimeFault, match="nothing goes from stage 1 to stage 2"):
        check_chain(replace(chain, interfaces=chain.interfaces[:1]), "gpipe")
    shared = (SharedPlan("last.weight", (), 0, (2,)),)
    with pytest.raises(RuntimeFault, match=r"last\.weight is in the stages 0, 2"):
        check_chain(replace(chain, shared=shared), "gpipe")


@pytest.mark.processes
def test_a_refused_bundle_says_so_once(make: Make) -> None:
    folder = make("skip3")
    with pytest.raises(RankFault, match="of the interface cut02") as caught:
        launch(folder, mode="1f1b")
    assert caught.value.exit_status == 2


def test_one_stage_is_no_pipeline(bundle: Make) -> None:
    plan = load_bundle(bundle("mlp2")).plan
    with pytest.raises(RuntimeFault, match="needs stages; this bundle has one"):
        check_processes(Place(), replace(plan, stages=plan.stages[:1]), "gpipe")


@given(st.integers(1, 300), st.integers(1, 300))
def test_microbatches_divide_the_batch(batch_size: int, asked: int) -> None:
    number = microbatches(batch_size, asked)
    assert batch_size % number == 0
    assert number <= asked
    assert not any(batch_size % n == 0 for n in range(number + 1, min(asked, batch_size) + 1))


def test_microbatches_that_1f1b_cannot_run() -> None:
    check_microbatches("gpipe", 7, 4, 3)
    check_microbatches("1f1b", 12, 5, 4)
    with pytest.raises(RuntimeFault, match="batches of 10 are cut into 2") as caught:
        check_microbatches("1f1b", 10, 4, 3)
    assert "5, 10" in str(caught.value)
    with pytest.raises(RuntimeFault, match="batches of 2 are cut into 2") as caught:
        check_microbatches("1f1b", 2, 4, 3)
    assert "a batch size of 3 or more" in str(caught.value)


def test_inputs_are_cut_along_the_axis_of_the_batch() -> None:
    rows = torch.arange(24).view(4, 6)
    assert [part.tolist() for part in cut(rows, None, 2)] == [rows[:2].tolist(), rows[2:].tolist()]
    columns = cut(rows, InputSpec("x", (0,), (4, "3*B")), 2)
    assert [part.tolist() for part in columns] == [rows[:, :3].tolist(), rows[:, 3:].tolist()]
    assert all(part.is_contiguous() for part in columns)
    same = cut(rows, InputSpec("x", (0,), (4, 6)), 2)
    assert len(same) == 2
    assert all(part is rows for part in same)


def test_a_cell_tells_torch_what_it_sends(bundle: Make) -> None:
    plan = load_bundle(bundle("skip3")).plan
    cell = Cell(torch.nn.Identity(), plan.stages[0], None, plan.interfaces[1], 4, torch.sum)
    assert cell.received() == ()
    assert [(list(t.shape), t.dtype, t.requires_grad) for t in cell.sent()] == [
        ([4, 1], torch.bool, False),
        ([4, 16], torch.float32, True),
    ]
