"""Batches in microbatches: our own 1F1B computes what the reference and plain torch compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dnic.runtime.bundle import load_bundle
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.links import Count
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.plan import TensorSpec
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

SLEEP = "import random, time; time.sleep(0.01 * random.SystemRandom().random() ** 3)"
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
# The last batch has 6 samples: three microbatches where the others have four.
UNEVEN = ("_data(100, 1)", "_data(54, 1)")
STEPS = 8

# One layer in two stages; the earlier one owns it.
TIED_FORWARD = """    def forward(self, x):
        stem = torch.relu(self.stem(x))
        return self.last(self.left(torch.relu(self.right(stem)) + torch.relu(self.left(stem))))


"""

TIED = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "stem")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.stem(x))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "left", "right")

    def forward(self, stem: Tensor) -> Tensor:
        return torch.relu(self.right(stem)) + torch.relu(self.left(stem))


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "left", "last")

    def forward(self, right: Tensor) -> Tensor:
        return self.last(self.left(right))


STAGES = (Stage0, Stage1, Stage2)
"""


def slow(text: str, stages: tuple[int, ...]) -> str:
    """Makes the forwards of stages take a random time."""
    for stage in stages:
        before, after = text.split(f"class Stage{stage}(")
        signature, body = after.split("-> Tensor:\n", 1)
        text = f"{before}class Stage{stage}({signature}-> Tensor:\n        {SLEEP}\n{body}"
    return text


@pytest.fixture(name="make")
def _make(bundle: Make, rows: SimpleNamespace, kinds: Any) -> Make:
    """Bundles of every kind, and `mlp4`, whose middle interface alone is decoupled, and `tied3`."""

    def make(kind: str, *, sleeps: tuple[int, ...] = (), plan: Any = None, **keys: Any) -> Path:
        which: Any = kind
        more: dict[str, Any] = {}
        if kind == "mlp4":
            *parts, cuts = kinds[kind]
            gradients = ["exact", "synthetic", "exact"]
            which = (*parts, [c | {"gradient": g} for c, g in zip(cuts, gradients, strict=True)])
        if kind == "tied3":
            names = ["x", "stem", "right", "output"]
            stages = [rows.stage(k, [names[k]], [names[k + 1]], f"part{k}") for k in range(3)]
            cuts = [
                rows.interface(k, k + 1, rows.tensor(name, 16))
                for k, name in enumerate(["stem", "right"])
            ]
            before, after = kinds["skip3"][0].split("    def forward")
            model = before + TIED_FORWARD + "build_model" + after.split("build_model", 1)[1]
            which = (model, TIED, stages, cuts)
            shared = ("left.weight", "left.bias")
            more["shared"] = [
                {"name": name, "owner": 1, "holders": [2], "nbytes": 64} for name in shared
            ]

        def edit(name: str, text: str) -> str:
            text = slow(text, sleeps) if name == "stages.py" else text
            return text.replace(*UNEVEN)

        train = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}
        plan_keys = {"train": train} | more | (plan or {})
        return bundle(which, edit=edit, plan_keys=plan_keys, **keys)

    return make


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "mode", "asked", "keys"),
    [
        pytest.param("mlp2", "exact", 4, {}, id="2 stages"),
        pytest.param("mlp3", "exact", 16, {"sleeps": (1,)}, id="samples one by one"),
        pytest.param("mlp4", "exact", 4, {"sleeps": (0, 3)}, id="4 stages"),
        pytest.param("conv2", "exact", 3, {}, id="BatchNorm"),
        pytest.param("skip3", "exact", 4, {"sleeps": (1,)}, id="skip"),
        pytest.param("tied3", "exact", 4, {"sleeps": (2,)}, id="tie"),
        pytest.param("mlp3", "decoupled", 4, {"window": 1, "warmup_steps": 3}, id="window 1"),
        pytest.param("skip3", "decoupled", 2, {"sleeps": (1,), "warmup_steps": 2}, id="decoupled"),
        pytest.param("tied3", "decoupled", 4, {"window": 1, "sleeps": (1,)}, id="decoupled tie"),
        pytest.param("mlp4", "decoupled", 4, {"sleeps": (0, 2)}, id="two groups"),
        pytest.param(
            "mlp4", "decoupled", 8, {"window": 1, "warmup_steps": 3}, id="two groups warm up"
        ),
    ],
)
def test_equals_reference(
    make: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    mode: str,
    asked: int,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = make(kind, **keys)
    arguments = (f"--mode={mode}", f"--microbatches={asked}", f"--record={tmp_path / 'record'}")
    run_ranks(folder, int(kind[-1]), *arguments)
    expected = reference(folder, mode=mode, microbatches=asked).run()
    assert len(expected.losses) == STEPS
    found = read_record(tmp_path / "record")
    assert same(found, expected)
    undivided = reference(folder, mode=mode).run()
    assert found.losses[1:] != undivided.losses[1:]
    if mode == "decoupled":
        assert {name.split(".")[0] for name in found.heads} >= {"cut12"}


@pytest.mark.parametrize("kind", ["mlp2", "mlp3", "mlp4", "skip3", "tied3"])
@pytest.mark.parametrize("asked", [1, 4, 5])
def test_exact_is_plain_accumulation(
    make: Make, reference: Run, load_module: Run, kind: str, asked: int
) -> None:
    """Against torch itself: the undivided model, the mean of the microbatches' gradients."""
    folder = make(kind)
    run = reference(folder, mode="exact", dropout=False, microbatches=asked)
    found = run.run()
    user = load_module(folder / "model.py")
    model = user.build_model()
    model.load_state_dict(load_file(folder / "init.safetensors"), strict=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), **SGD["options"])
    losses = []
    for epoch in (1, 2):
        for (inputs,), target in run._batches.epoch(epoch):
            number = {(16, 4): 4, (6, 4): 3, (16, 5): 4, (6, 5): 3}.get((len(target), asked), 1)
            optimizer.zero_grad()
            parts = zip(inputs.chunk(number), target.chunk(number), strict=True)
            means = [user.loss(model(x), y) for x, y in parts]
            for mean in means:
                (mean / number).backward()
            optimizer.step()
            losses.append(sum(mean.item() for mean in means) / number)
    torch.testing.assert_close(found.losses, losses, rtol=0, atol=1e-6)
    state = model.state_dict()
    assert found.parameters.keys() == state.keys()
    for name, parameter in found.parameters.items():
        torch.testing.assert_close(parameter, state[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["exact", "decoupled", "oracle"])
def test_a_parameter_that_crosses_as_it_is(
    bundle: Make,
    rows: SimpleNamespace,
    kinds: Any,
    run_ranks: Run,
    reference: Run,
    same: Run,
    mode: str,
    tmp_path: Path,
) -> None:
    """It does not follow the batch, and its gradient is a view of what came over the link."""
    model, stages_text, stages, _ = kinds["mlp2"]
    stages = [stages[0] | {"outputs": ["hidden", "table"]}, stages[1]]
    stages[1] = stages[1] | {"inputs": ["hidden", "table"]}
    table = rows.tensor("table") | {"shape": [2, 16]}
    head = {"hidden_layers": 0, "width": 8, "context": "none", "lr": 1e-2}
    cut = rows.interface(0, 1, rows.tensor("hidden", 32), table, head=head, warmup_steps=3)
    parameter = "self.scale = nn.Parameter(torch.ones(12))\n"
    model = model.replace(
        parameter, f"{parameter}        self.table = nn.Parameter(torch.ones(32))\n"
    ).replace(
        "for layer in self.layers:\n",
        "for k, layer in enumerate(self.layers):\n"
        "            x = x + self.table if k == 2 else x\n",
    )
    stages_text = (
        stages_text.replace('"scale", ', '"scale", "table", ')
        .replace("x: Tensor) -> Tensor", "x: Tensor) -> tuple[Tensor, Tensor]")
        .replace("torch.relu(self.layers[1](x)))", "torch.relu(self.layers[1](x))), TABLE")
        .replace("TABLE", "self.table.view(2, 16)")
        .replace("hidden: Tensor)", "hidden: Tensor, table: Tensor)")
        .replace("self.layers[2](hidden)", "self.layers[2](hidden + table.reshape(32))")
    )
    folder = bundle((model, stages_text, stages, [cut]), window=1)
    arguments = (f"--mode={mode}", "--microbatches=4", f"--record={tmp_path / 'record'}")
    run_ranks(folder, 2, *arguments)
    found = read_record(tmp_path / "record")
    assert same(found, reference(folder, mode=mode, microbatches=4).run())
    assert not torch.equal(found.parameters["table"], torch.ones(32))


@pytest.mark.processes
def test_oracle_equals_exact(make: Make, run_ranks: Run, same: Run, tmp_path: Path) -> None:
    """Heads run and learn beside; the gradients of microbatches are those of exact mode."""
    folder = make("skip3", window=1)
    for mode in ("exact", "oracle"):
        arguments = (f"--mode={mode}", "--microbatches=4", f"--record={tmp_path / mode}")
        run_ranks(folder, 3, *arguments)
    exact, oracle = read_record(tmp_path / "exact"), read_record(tmp_path / "oracle")
    assert oracle.heads
    assert same(Record(oracle.losses, oracle.parameters, {}), exact)


@pytest.mark.processes
def test_a_resumed_run_goes_on_bit_for_bit(
    make: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    """With dropout, evaluation in between, and the microbatches from the plan."""
    folder = make("mlp4", plan={"schedule": {"mode": "decoupled", "microbatches": 4}})
    run_ranks(folder, 4, f"--record={tmp_path / 'whole'}")
    out = tmp_path / "out"
    run_ranks(folder, 4, f"--out={out}", "--epochs=1")
    run_ranks(folder, 4, f"--out={out}", f"--resume={out}", f"--record={tmp_path / 'rest'}")
    whole_run, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert same(Record(whole_run.losses[4:], whole_run.parameters, whole_run.heads), rest)
    result = json.loads((out / "result.json").read_text())
    assert (result["mode"], result["microbatches"], result["test_samples"]) == ("decoupled", 4, 40)
    assert result["interfaces"]["cut12"]["lateness_max"] == 2
    assert result["interfaces"]["cut01"]["lateness_max"] == 0
    assert {"forward", "backward", "send back"} <= result["parts_us"][0].keys()


@pytest.mark.processes
@pytest.mark.parametrize("asked", [2, 3, 16])
def test_no_count_of_microbatches_blocks(make: Make, run_ranks: Run, asked: int) -> None:
    """More and fewer than stages, an odd last batch, evaluation in between."""
    folder = make("mlp4", window=1, warmup_steps=2)
    run_ranks(folder, 4, f"--microbatches={asked}", "--no-checkpoint", timeout_s=60)


def test_a_batch_of_its_microbatches() -> None:
    rows = TensorSpec("r", ("B", 2), "float32", True)
    columns = TensorSpec("c", (3, "2*B"), "float32", True)
    bias = TensorSpec("b", (2,), "float32", True)
    tensors = [torch.arange(8.0).view(4, 2), torch.arange(24.0).view(3, 8), torch.ones(2)]
    target = torch.arange(4)
    cut = [
        Returned([r, c, tensors[2]], y, [r * 2, c * 2, torch.full((2,), float(k))])
        for k, (r, c, y) in enumerate(
            zip(tensors[0].chunk(2), tensors[1].chunk(2, 1), target.chunk(2), strict=True), 1
        )
    ]
    found = whole((rows, columns, bias), cut)
    assert found.target.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, tensors, strict=True))
    assert torch.equal(found.gradients[0], tensors[0] * 2)
    assert torch.equal(found.gradients[1], tensors[1] * 2)
    # What does not follow the batch is used in every microbatch: its gradients add up.
    assert found.gradients[2].tolist() == [3.0, 3.0]
    assert whole((rows, columns, bias), cut[:1]) is cut[0]


def test_microbatches_are_predicted_as_their_batch_is() -> None:
    torch.manual_seed(0)
    h, target, gradient = torch.randn(8, 6), torch.arange(8) % 3, torch.randn(8, 6)
    head = build_head((6,), torch.float32, HeadSpec(), 3, (), torch.int64)
    trainer = HeadTrainer(head, lr=1e-2)
    for _ in range(3):
        trainer.learn(h, target, gradient)
    predicted = trainer.predict(h, target)
    parts = [trainer.predict(x, y, 4) for x, y in zip(h.chunk(4), target.chunk(4), strict=True)]
    assert predicted.abs().max() > 0
    torch.testing.assert_close(torch.cat(parts), predicted)


def test_an_interface_has_a_slot_for_every_message_of_its_window(make: Make) -> None:
    from dnic.runtime.edges import pairs

    (pair,) = pairs(load_bundle(make("mlp2", window=2)).plan, "decoupled", 8)
    assert (pair.slots, pair.back) == (24, 24)
    assert pair.cut(Count(3, 16, 12)) == Count(8 + 8 + 6, 2, 2, last=6)
