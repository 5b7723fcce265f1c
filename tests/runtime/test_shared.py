"""Parameters that several stages use: one parameter, whatever the window and the links' timing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.checkpoint import find_checkpoint, load_full_state_dict
from dnic.runtime.names import load_initial
from dnic.runtime.record import Record, read_record
from dnic.runtime.shared import channels, shared_lag

Make = Callable[..., Path]
Run = Callable[..., Any]

SLEEP = "import random, time; time.sleep(0.02 * random.SystemRandom().random() ** 3)"

MODEL = '''import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Block(nn.Module):
    """One layer for all depths; its buffers are each stage's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.frozen = nn.Parameter(torch.full((16,), 0.5), requires_grad=False)
        self.register_buffer("inv_freq", torch.linspace(1.0, 2.0, 16), persistent=False)

    def forward(self, hidden):
        mixed = self.norm(self.linear(hidden * self.inv_freq).transpose(1, 2)).transpose(1, 2)
        return hidden + self.frozen * torch.tanh(mixed)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 13, bias=False)  # stands before the owner in the state
        self.embed = nn.Embedding(13, 16)
        self.head.weight = self.embed.weight
        self.block = Block()
        self.middle = nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.zeros(13))
        self.drop = nn.Dropout(0.1)

    def forward(self, ids):
        hidden = self.block(self.embed(ids))
        hidden = self.block(self.drop(torch.relu(self.middle(hidden))))
        return self.head(self.block(hidden)) + self.bias


build_model = Tied


def loss(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def _data(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(13, (samples, 4), generator=generator)
    return TensorDataset(ids, (ids * 3 + 1) % 13)


def train_data():
    return _data(90, 1)


def test_data():
    return _data(40, 2)
'''

# The last stage takes the tied weight as head.weight, the first as embed.weight.
THREE = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "embed", "block")

    def forward(self, ids: Tensor) -> Tensor:
        return self.block(self.embed(ids))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "block", "middle", "drop")

    def forward(self, first: Tensor) -> Tensor:
        return self.block(self.drop(torch.relu(self.middle(first))))


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "block", "head", "bias")

    def forward(self, second: Tensor) -> Tensor:
        return self.head(self.block(second)) + self.bias


STAGES = (Stage0, Stage1, Stage2)
"""

TWO = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "embed", "block")

    def forward(self, ids: Tensor) -> Tensor:
        return self.block(self.embed(ids))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "block", "middle", "drop", "head", "bias")

    def forward(self, first: Tensor) -> Tensor:
        second = self.block(self.drop(torch.relu(self.middle(first))))
        return self.head(self.block(second)) + self.bias


STAGES = (Stage0, Stage1)
"""

LAYER = ("linear.weight", "norm.weight", "norm.bias", "frozen")


def own_statistics(name: str, text: str) -> str:
    """Without running statistics, which stages count each for itself and the model all together."""
    return text.replace("nn.BatchNorm1d(16)", "nn.BatchNorm1d(16, track_running_stats=False)")


@pytest.fixture
def tied(bundle: Make, rows: SimpleNamespace) -> Callable[..., Path]:
    """A bundle of two or three stages whose ends share a weight, and all of them a layer."""

    def make(count: int, **keys: Any) -> Path:
        last, holders = count - 1, list(range(1, count))
        weight = {"name": "head.weight", "aliases": ["embed.weight"], "owner": 0, "nbytes": 832}
        layer = [{"name": f"block.{name}", "owner": 0, "holders": holders} for name in LAYER]
        names = ["ids", "first", "second"][:count]
        stages = [
            rows.stage(index, [name], [*names[index + 1 : index + 2]] or ["output"], f"part{index}")
            for index, name in enumerate(names)
        ]
        cuts = [
            rows.interface(index, index + 1, rows.tensor(name, 4, 16))
            for index, name in enumerate(names[1:])
        ]
        return bundle(
            (MODEL, THREE if count == 3 else TWO, stages, cuts),
            plan_keys={
                "shared": [weight | {"holders": [last]}, *layer],
                "target": {"shape": ["B", 4], "dtype": "int64", "classes": 13},
            },
            **keys,
        )

    return make


def slow(stage: int) -> Callable[[str, str], str]:
    """Makes one stage's forward take a random time."""

    def edit(name: str, text: str) -> str:
        if name != "stages.py":
            return text
        before, after = text.split(f"class Stage{stage}(")
        signature, body = after.split("-> Tensor:\n", 1)
        return f"{before}class Stage{stage}({signature}-> Tensor:\n        {SLEEP}\n{body}"

    return edit


@pytest.mark.processes
@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(("count", "slow_stage"), [(2, 0), (2, 1), (3, 1), (3, 2)])
def test_decoupled_equals_reference(
    tied: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    count: int,
    slow_stage: int,
    window: int,
    tmp_path: Path,
) -> None:
    folder = tied(count, window=window, warmup_steps=2, edit=slow(slow_stage))
    run_ranks(folder, count, f"--record={tmp_path / 'record'}")
    expected = reference(folder).run()
    assert len(expected.losses) == 12
    assert same(read_record(tmp_path / "record"), expected)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("count", "gradients"),
    [(2, ["stale"]), (3, ["stale", "stale"]), (3, ["synthetic", "stale"])],
)
def test_stale_equals_reference(
    tied: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    count: int,
    gradients: list[str],
    tmp_path: Path,
) -> None:
    """Late stages copy their weights away before the owner's values overwrite them."""
    folder = tied(count, window=2, warmup_steps=2, edit=slow(count - 1))
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, gradient in zip(plan["interfaces"], gradients, strict=True):
        row["gradient"] = gradient
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_ranks(folder, count, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


@pytest.mark.processes
@pytest.mark.parametrize("count", [2, 3])
def test_exact_follows_backprop_and_oracle_equals_exact(
    tied: Make, run_ranks: Run, reference: Run, same: Run, count: int, tmp_path: Path
) -> None:
    folder = tied(count, window=2, edit=own_statistics)
    records: dict[str, Record] = {}
    for mode in ("exact", "oracle", "backprop"):
        ranks = 1 if mode == "backprop" else count
        arguments = (f"--mode={mode}", "--no-dropout", f"--record={tmp_path / mode}")
        run_ranks(folder, ranks, *arguments)
        records[mode] = read_record(tmp_path / mode)
    exact, oracle, backprop = records["exact"], records["oracle"], records["backprop"]
    assert same(exact, reference(folder, mode="exact", dropout=False).run())
    assert same(Record(oracle.losses, oracle.parameters, {}), exact)
    # The gradients of a parameter's uses are added in different orders.
    torch.testing.assert_close(exact.losses, backprop.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.parameters, backprop.parameters, rtol=1e-3, atol=1e-4)


@pytest.mark.processes
def test_resumed_run_goes_on_bit_for_bit(
    tied: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = tied(3, warmup_steps=2)
    run_ranks(folder, 3, "--epochs=3", f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    out, record = tmp_path / "b", tmp_path / "rest"
    run_ranks(folder, 3, "--epochs=1", f"--out={out}")
    run_ranks(folder, 3, "--epochs=3", f"--resume={out}", f"--out={out}", f"--record={record}")
    whole, rest = read_record(tmp_path / "whole"), read_record(record)
    assert same(Record(whole.losses[6:], whole.parameters, whole.heads), rest)


@pytest.mark.processes
def test_all_stages_see_the_owners_value_in_evaluation_and_after_resume(
    tied: Make, run_ranks: Run, load_module: Run, tmp_path: Path
) -> None:
    """The stages' evaluation is that of the exported model, right after a resume too."""
    train = "        trainer.train(train_batches)\n"
    before = (
        "        before = trainer.evaluate(test_batches)\n"
        "        if worker.place.rank == 0:\n"
        "            (worker.options.out / 'before').write_text(str(before.test_loss))\n"
    )

    def edit(name: str, text: str) -> str:
        return own_statistics(name, text).replace(train, before + train)

    folder = tied(3, edit=edit)
    run_ranks(folder, 3, "--epochs=1")
    run, more = folder / "runs" / "decoupled", tmp_path / "more"
    result = json.loads((run / "result.json").read_text())
    user = load_module(folder / "model.py")
    model = user.build_model()
    state = load_full_state_dict(run)
    assert torch.equal(state["head.weight"], state["embed.weight"])
    model.load_state_dict(state, strict=True)
    ids, target = user.test_data()[:]
    parts = zip(ids.split(16), target.split(16), strict=True)
    with torch.no_grad():
        losses = [len(x) * user.loss(model.eval()(x), y).item() for x, y in parts]
    assert result["test_loss"] == pytest.approx(sum(losses) / 40, rel=1e-5)
    run_ranks(folder, 3, "--epochs=2", f"--resume={run}", f"--out={more}")
    assert float((more / "before").read_text()) == result["test_loss"]


@pytest.mark.processes
def test_an_optimizer_of_the_users_leaves_the_copies_alone(
    tied: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}

    def edit(name: str, text: str) -> str:
        own = f"torch.optim.SGD(stage.parameters(), **{options})"
        if name == "train.py":
            text = text.replace("import model\n", "import model\nimport torch\n")
        return text.replace("worker.optimizer(stage)", own)

    folder = tied(3, window=2, edit=edit)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["train"]["optimizer"] = {"name": "SGD", "options": options}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


@pytest.mark.processes
def test_late_stages_that_are_in_time_all_along_are_exact(
    tied: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """What is shared included: no gradient of a holder comes later than it would have."""
    folder = tied(3, window=2, warmup_steps=99)
    text = (folder / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(text.replace("gradient: synthetic", "gradient: stale"))
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert same(record, reference(folder).run())
    assert same(record, reference(folder, mode="exact").run())


@pytest.mark.processes
def test_max_steps_drains_too(
    tied: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """Fewer steps than the window: every gradient of the holders comes at the end."""
    folder = tied(2, window=4)
    run_ranks(folder, 2, "--max-steps=3", f"--record={tmp_path / 'record'}")
    expected = reference(folder).run(max_steps=3)
    assert len(expected.losses) == 3
    assert same(read_record(tmp_path / "record"), expected)


def test_in_exact_mode_the_parameter_is_plain_backprops(
    tied: Make, reference: Run, load_module: Run
) -> None:
    """Against torch itself, step by step: value, gradient and update of every use."""
    folder = tied(3, edit=own_statistics)
    run = reference(folder, mode="exact", dropout=False)
    found = run.run(epochs=1)
    model = load_module(folder / "model.py").build_model()
    load_initial(model, str(folder / "init.safetensors"))
    model.drop.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for (ids,), target in run._batches.epoch(1):
        loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(found.losses, losses, rtol=1e-5, atol=1e-5)
    weight = model.state_dict()["embed.weight"]
    torch.testing.assert_close(found.parameters["embed.weight"], weight, rtol=1e-3, atol=1e-4)


def test_no_optimizer_but_the_owners_holds_a_shared_parameter(tied: Make, reference: Run) -> None:
    sizes = [len(stage.optimizer.param_groups[0]["params"]) for stage in reference(tied(3))._stages]
    # The weight and the layer's four; two of the middle; the bias.
    assert sizes == [5, 2, 1]


def test_the_last_gradients_of_an_epoch_are_not_lost(tied: Make, reference: Run) -> None:
    """After one step at window 1 the owner has both gradients, in two updates."""
    folder = tied(2, window=1, warmup_steps=9, edit=own_statistics)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["train"]["optimizer"] = {"name": "SGD", "options": {"lr": 1.0}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    late = reference(folder, dropout=False).run(max_steps=1)
    exact = reference(folder, mode="exact", dropout=False).run(max_steps=1)
    torch.testing.assert_close(late.parameters, exact.parameters, rtol=1e-5, atol=1e-6)


LAGS = [
    ("decoupled", ["synthetic", "synthetic"], [2, 3], 5),
    ("decoupled", ["synthetic", "exact"], [2, 3], 2),
    ("decoupled", ["exact", "synthetic"], [2, 3], 3),
    ("decoupled", ["exact", "exact"], [2, 3], 0),
    ("decoupled", ["stale", "stale"], [2, 3], 5),
    ("decoupled", ["stale", "synthetic"], [2, 3], 5),
    ("stale", ["synthetic", "exact"], [2, 3], 2),
    ("exact", ["synthetic", "synthetic"], [2, 3], 0),
    ("oracle", ["synthetic", "synthetic"], [2, 3], 0),
]


@pytest.mark.parametrize(("mode", "gradients", "windows", "expected"), LAGS)
def test_lag_of_a_chain(
    tied: Make, mode: Any, gradients: list[str], windows: list[int], expected: int
) -> None:
    folder = tied(3)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, gradient, window in zip(plan["interfaces"], gradients, windows, strict=True):
        row.update(gradient=gradient, window=window)
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    made = channels(load_bundle(folder).plan, mode)
    assert [(channel.owner, channel.holder) for channel in made] == [(0, 1), (0, 2)]
    assert made[1].lag == expected
    assert [len(channel.shared) for channel in made] == [4, 5]


def test_lag_along_interfaces_that_skip_stages(bundle: Make) -> None:
    """The owner awaits the far stage's gradient over the skip anyway."""
    folder = bundle("skip3", window=3)
    assert shared_lag(load_bundle(folder).plan, "decoupled", 0, 2) == 3
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    del plan["interfaces"][0]  # stages 0 and 1 side by side
    plan["interfaces"][1]["gradient"] = "exact"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert shared_lag(load_bundle(folder).plan, "decoupled", 0, 1) == 2
    assert shared_lag(load_bundle(folder).plan, "decoupled", 1, 2) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows.clear(), "head.weight is in stage 0 and in stage 2"),
        (lambda rows: rows[0].update(holders=[1]), "head.weight is in stage 0 and in stage 2"),
        (lambda rows: rows[1].update(owner=1, holders=[0, 2]), "is in stage 0 and in stage 1"),
        (
            lambda rows: rows.append({"name": "bias", "owner": 0, "holders": [2]}),
            "bias is not in the stages 0, 2, as planned",
        ),
    ],
)
def test_plans_that_do_not_know_who_shares(
    tied: Make, reference: Run, change: Callable[[Any], Any], problem: str
) -> None:
    folder = tied(3)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    change(plan["shared"])
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(RuntimeFault, match=problem):
        reference(folder)


@pytest.mark.processes
def test_the_checkpoint_and_the_optimizers_hold_the_parameter_once(
    tied: Make, run_ranks: Run
) -> None:
    count = (
        "    sizes = [len(group['params']) for group in optimizer.param_groups]\n"
        "    (worker.bundle.folder / f'sizes{worker.place.rank}').write_text(str(sizes))\n"
    )

    def edit(name: str, text: str) -> str:
        epochs = "    for _ in trainer.epochs():\n"
        return text.replace(epochs, count + epochs) if name == "train.py" else text

    folder = tied(2, edit=edit)
    run_ranks(folder, 2, "--epochs=1", "--no-evaluate")
    checkpoint = find_checkpoint(folder / "runs" / "decoupled")
    status = json.loads((checkpoint / "dnic.json").read_text())
    assert status["tied"] == {"head.weight": "embed.weight"}
    assert [(folder / f"sizes{rank}").read_text() for rank in (0, 1)] == ["[5]", "[3]"]
