"""The engine computes what the single-process reference computes, bit for bit, at any timing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dnic.runtime.record import Record, read_record

SLEEP = "import random, time; time.sleep(0.03 * random.SystemRandom().random() ** 3)"

pytestmark = pytest.mark.processes

Make = Callable[..., Path]
Run = Callable[..., Any]


def slow(stage: int) -> Callable[[str, str], str]:
    """Makes one stage's forward take a random time, from a generator that nothing else uses."""

    def edit(name: str, text: str) -> str:
        if name != "stages.py":
            return text
        before, after = text.split(f"class Stage{stage}(")
        signature, body = after.split("-> Tensor:\n", 1)
        return f"{before}class Stage{stage}({signature}-> Tensor:\n        {SLEEP}\n{body}"

    return edit


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "slow_stage"),
    [("mlp2", 0), ("mlp2", 1), ("mlp3", 1), ("conv2", 1), ("skip3", 1)],
)
def test_decoupled_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    slow_stage: int,
    window: int,
    tmp_path: Path,
) -> None:
    folder = bundle(kind, window=window, warmup_steps=3, edit=slow(slow_stage))
    processes = 2 if kind.endswith("2") else 3
    run_ranks(folder, processes, f"--record={tmp_path / 'record'}")
    expected = reference(folder).run()
    assert len(expected.losses) == 14
    assert same(read_record(tmp_path / "record"), expected)


def test_the_next_run_gives_the_same_bits(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("skip3", edit=slow(1))
    for name in ("first", "second"):
        run_ranks(folder, 3, f"--record={tmp_path / name}")
    assert same(read_record(tmp_path / "first"), read_record(tmp_path / "second"))


def test_another_seed_gives_another_run(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    folder = bundle("mlp2")
    for seed in (1, 2):
        run_ranks(folder, 2, f"--record={tmp_path / str(seed)}", f"--seed={seed}", "--epochs=1")
    assert read_record(tmp_path / "1").losses != read_record(tmp_path / "2").losses


@pytest.mark.parametrize(("kind", "processes"), [("mlp3", 3), ("conv2", 2), ("skip3", 3)])
def test_exact_follows_backprop_and_oracle_equals_exact(
    bundle: Make, run_ranks: Run, same: Run, kind: str, processes: int, tmp_path: Path
) -> None:
    folder = bundle(kind)
    records: dict[str, Record] = {}
    for mode in ("exact", "oracle", "backprop"):
        ranks = 1 if mode == "backprop" else processes
        arguments = (f"--mode={mode}", "--no-dropout", f"--record={tmp_path / mode}")
        run_ranks(folder, ranks, *arguments)
        records[mode] = read_record(tmp_path / mode)
    exact, oracle, backprop = records["exact"], records["oracle"], records["backprop"]
    assert not exact.heads
    assert oracle.heads
    assert same(Record(oracle.losses, oracle.parameters, {}), exact)
    # The two sum the gradients of a skip connection in different orders.
    torch.testing.assert_close(exact.losses, backprop.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact.parameters, backprop.parameters, rtol=1e-4, atol=1e-5)


def test_exact_with_dropout_equals_reference(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp3", window=4)
    run_ranks(folder, 3, "--mode=exact", f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder, mode="exact").run())


def test_exact_and_synthetic_interfaces_side_by_side(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("skip3")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][1]["gradient"] = "exact"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert {name.split(".")[0] for name in record.heads} == {"cut01", "cut12"}
    assert same(record, reference(folder).run())


def test_steps_without_warmup_differ_from_exact(
    bundle: Make, run_ranks: Run, tmp_path: Path
) -> None:
    """The heads of a decoupled run matter: without this the tests above could compare nothing."""
    folder = bundle("mlp2")
    for mode in ("exact", "decoupled"):
        run_ranks(folder, 2, f"--mode={mode}", f"--record={tmp_path / mode}", "--epochs=1")
    exact, decoupled = read_record(tmp_path / "exact"), read_record(tmp_path / "decoupled")
    assert exact.losses[0] == decoupled.losses[0]
    assert exact.losses[2:] != decoupled.losses[2:]


def test_resumed_run_goes_on_bit_for_bit(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp3", warmup_steps=2)
    run_ranks(folder, 3, "--epochs=3", f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    run_ranks(folder, 3, "--epochs=1", f"--out={tmp_path / 'b'}")
    record, out = tmp_path / "rest", tmp_path / "b"
    run_ranks(folder, 3, "--epochs=3", f"--resume={out}", f"--out={out}", f"--record={record}")
    whole, rest = read_record(tmp_path / "whole"), read_record(record)
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), rest)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_evaluation_may_come_at_any_time_and_changes_nothing(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    def edit(name: str, text: str) -> str:
        evaluate = "        trainer.evaluate(test_batches)\n"
        train = "        trainer.train(train_batches)\n"
        return text.replace(train, evaluate + train + evaluate) if name == "train.py" else text

    folder = bundle("conv2", edit=edit)
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


def test_evaluation_through_the_stages_equals_plain_torch(
    bundle: Make, run_ranks: Run, load_module: Run, tmp_path: Path
) -> None:
    folder = bundle("conv2")
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    result = json.loads((folder / "runs/decoupled/result.json").read_text())
    user = load_module(folder / "model.py")
    model = user.build_model()
    model.load_state_dict(read_record(tmp_path / "record").parameters)
    inputs, target = user.test_data()[:]
    with torch.no_grad():
        output = model.eval()(inputs)
    assert result["test_accuracy"] == (output.argmax(1) == target).double().mean().item()
    assert result["test_loss"] == pytest.approx(user.loss(output, target).item(), rel=1e-6)


def test_lateness_is_the_window(bundle: Make, run_ranks: Run) -> None:
    folder = bundle("mlp3", window=4, edit=slow(2))
    run_ranks(folder, 3)
    result = json.loads((folder / "runs/decoupled/result.json").read_text())
    for row in result["interfaces"].values():
        assert row["lateness_max"] == 4
        # 7 steps: three gradients four updates late, the last four taken at the end of the epoch.
        assert row["lateness"] == pytest.approx((3 * 4 + 4 + 3 + 2 + 1) / 7)
        assert -1 <= row["cosine"] <= 1


def test_max_steps_ends_within_an_epoch(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2")
    run_ranks(folder, 2, "--max-steps=9", f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert len(record.losses) == 9
    assert same(record, reference(folder).run(max_steps=9))


def test_inputs_without_gradient_and_several_inputs(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """A data set of ((a, b), target), its samples made one by one, with random numbers."""

    def edit(name: str, text: str) -> str:
        if name == "model.py":
            pairs = (
                "class Pairs(torch.utils.data.Dataset):\n"
                "    def __len__(self):\n        return 50\n\n"
                "    def __getitem__(self, i):\n"
                "        return (torch.randn(12), torch.ones(12)), i % 5\n\n\n"
                "def train_data():\n    return Pairs()\n\n\n"
                "def test_data():\n    return Pairs()\n"
            )
            text = text.replace(
                "def forward(self, x):\n", "def forward(self, x, y):\n        x=x+y\n"
            )
            return text.split("def train_data")[0] + pairs
        return text.replace(
            "def forward(self, x: Tensor)", "def forward(self, x: Tensor, y: Tensor)"
        )

    folder = bundle("mlp2", edit=edit)
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


PASSES_ITS_INPUT_ON = ("return self.drop(torch.relu(self.layers[1](first)))", "return first[:, :]")
IGNORES_AN_INPUT = ("right * 0.5) + stem", "right * 0.5)")


@pytest.mark.parametrize(
    ("kind", "change"), [("mlp3", PASSES_ITS_INPUT_ON), ("skip3", IGNORES_AN_INPUT)]
)
def test_stages_that_alias_or_ignore_an_input(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    change: tuple[str, str],
    tmp_path: Path,
) -> None:
    folder = bundle(kind, edit=lambda name, text: text.replace(*change))
    assert change[1] in (folder / "stages.py").read_text()
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())
