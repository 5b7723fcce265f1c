"""Heads that see tensors which a spec names: planned, emitted, trained, resumed, and of use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnic.asked import spec_of_plan
from dnic.codegen.planfile import read_plan_file
from dnic.compiler import compile_model
from dnic.cost import head_cost, load_profile
from dnic.errors import PartitionError, RuntimeFault, SpecError
from dnic.graph.graph import Value
from dnic.runtime.bundle import load_bundle
from dnic.runtime.head_context import HashedContext
from dnic.runtime.head_layout import layout_of
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.plan import HeadPlan, TensorSpec
from dnic.runtime.record import Record, read_record
from dnic.runtime.registry import PredictorRequest, predictor_kind
from dnic.spec import spec_from_mapping

Run = Callable[..., Any]

MODEL = """
import torch
from torch import nn
from torch.utils.data import Dataset


class Part(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.act = nn.Linear(width, 16), nn.Tanh()

    def forward(self, x):
        return self.act(self.linear(x))


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(Part(8), Part(16), Part(16))
        self.kinds = nn.Embedding(7, 16)
        self.last = nn.Linear(16, 5)
        self.register_buffer("table", torch.ones(3, 16))

    def forward(self, x, kind, scale):
        return self.last(self.parts(x) * scale + self.kinds(kind) * self.table.mean(0))


def build_model():
    torch.manual_seed(0)
    return Conditioned()


def example_inputs():
    return torch.randn(4, 8), torch.arange(4) % 7, torch.rand(4, 1)


def loss(output, target):
    return nn.functional.cross_entropy(output, target)


class Data(Dataset):
    def __len__(self):
        return 44

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        x = torch.randn(8, generator=draw)
        return (x, torch.tensor(i % 7), torch.rand(1, generator=draw)), torch.tensor(i % 5)


def train_data():
    return Data()
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Compiles the model, into three stages unless told otherwise."""
    modules = set(sys.modules)

    def make(context: Any, cuts: tuple[str, ...] = ("parts.0", "parts.1"), **keys: Any) -> Path:
        (tmp_path / "model.py").write_text(MODEL)
        # Of this net no head explains much; it is used all the same.
        interface = {"gradient": "synthetic", "warmup_steps": 3, "guard": {"enabled": False}}
        interface |= keys | {"head": {"context": context, **keys.get("head", {})}}
        spec = spec_from_mapping(
            {
                "model": {"file": str(tmp_path / "model.py")},
                "train": {"epochs": 2, "batch_size": 8},
                "devices": {"count": len(cuts) + 1, "profile": "cpu-core", "costs": "analytic"},
                "partition": {"schedule": "decoupled", "cuts": cuts},
                "interfaces": {"default": interface},
            },
            "test",
        )
        folder = tmp_path / f"bundle{len(list(tmp_path.glob('bundle*')))}"
        compile_model(spec, folder)
        return folder

    yield make
    for name in {"model", "stages"} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("context", "keys"),
    [
        (["target", "kind", "scale"], {}),
        (["kind"], {"head": {"hidden_layers": 0}}),
        (["parts.0", "target", "kind"], {"message": "bf16"}),
        (["scale"], {"head": {"one_in": 2, "width": 4}, "return_every": 2}),
    ],
)
def test_equals_reference(
    compiled: Run, as_reference: Run, context: list[str], keys: dict[str, Any]
) -> None:
    assert as_reference(compiled(context, **keys), 3).heads


@pytest.mark.processes
def test_of_microbatches(
    compiled: Run, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = compiled(["kind", "scale", "target"])
    run_ranks(folder, 3, "--microbatches=2", f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder, microbatches=2).run())


@pytest.mark.processes
def test_at_a_stage_that_is_late(compiled: Run, as_reference: Run) -> None:
    """Its batches go back later than they came: what its head sees is kept as long."""
    folder = compiled(["kind"], window=2)
    plan = (folder / "plan.yaml").read_text()
    first, second = plan.split("gradient: synthetic", 1)
    (folder / "plan.yaml").write_text(f"{first}gradient: stale{second}")
    assert {name.split(".")[0] for name in as_reference(folder, 3).heads} == {"parts"}


@pytest.mark.processes
def test_other_modes_train_as_if_nothing_was_seen(
    compiled: Run, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    """Also the oracle, whose heads predict and learn while the true gradient is used."""
    folder = compiled(["kind", "parts.0"], ("parts.0",))
    records = {}
    for mode in ("exact", "oracle", "gpipe", "backprop"):
        out = tmp_path / mode
        run_ranks(folder, 1 + (mode != "backprop"), f"--mode={mode}", f"--record={out}")
        records[mode] = read_record(out)
    exact = records["exact"]
    for mode in ("oracle", "backprop"):
        found = records[mode]
        assert same(Record(found.losses, found.parameters, exact.heads), exact), mode
    assert records["oracle"].heads and not exact.heads
    # Of microbatches: rounded otherwise.
    assert records["gpipe"].losses == pytest.approx(exact.losses, abs=1e-6)


@pytest.mark.processes
def test_resumes_bit_for_bit(compiled: Run, run_ranks: Run, same: Run, tmp_path: Path) -> None:
    folder, out = compiled(["kind", "scale"]), tmp_path / "run"
    run_ranks(folder, 3, f"--record={tmp_path / 'whole'}")
    run_ranks(folder, 3, "--epochs=1", f"--out={out}")
    run_ranks(folder, 3, "--epochs=2", f"--resume={out}", f"--record={tmp_path / 'resumed'}")
    whole, resumed = (read_record(tmp_path / name) for name in ("whole", "resumed"))
    assert same(resumed, Record(whole.losses[6:], whole.parameters, whole.heads))


def test_microbatches_are_put_together(compiled: Run) -> None:
    (interface,) = load_bundle(compiled(["kind", "scale"], ("parts.0",))).plan.interfaces
    parts = [
        Returned([torch.full((2, 16), i)], torch.zeros(2), None, [torch.full((2,), i)] * 2)
        for i in range(3)
    ]
    batch = whole(interface.differentiable, parts, interface.context)
    assert [tensor.tolist() for tensor in batch.context] == [[0, 0, 1, 1, 2, 2]] * 2


def test_training_depends_on_it(compiled: Run, reference: Run) -> None:
    without, other, with_it = (
        reference(compiled(context)).run().losses
        for context in (["target"], ["target", "scale"], ["target", "kind"])
    )
    assert without[:3] == other[:3] == with_it[:3]  # of the warm-up
    assert without != other != with_it


def test_is_sent_where_it_is_not_at_hand(compiled: Run) -> None:
    """`kind` is used in the last stage alone; the head of the second sees it, and sends none."""
    plan = load_bundle(compiled(["target", "kind", "parts.0"])).plan
    first, second, skipping = sorted(plan.interfaces, key=lambda row: (row.to, row.source))
    assert [spec.name for spec in first.tensors] == ["kind", "parts_0"]
    assert [spec.differentiable for spec in first.tensors] == [False, True]
    assert [spec.name for spec in second.tensors + skipping.tensors].count("kind") == 1
    assert {spec.name for spec in skipping.context + second.context} == {"kind", "parts_0"}
    assert plan.stages[1].outputs == ("kind", "parts_0", "parts_1")


@pytest.mark.processes
def test_is_sent_without_a_gradient(compiled: Run, as_reference: Run) -> None:
    """What the first stage makes and the head of the third sees goes past the second."""
    folder = compiled(["target", "parts.0"], ("parts.0", "parts.1", "parts.2"))
    (sent,) = (row for row in load_bundle(folder).plan.interfaces if (row.source, row.to) == (0, 2))
    assert [(spec.name, spec.differentiable) for spec in sent.tensors] == [("parts_0", False)]
    assert as_reference(folder, 4).heads


def test_stages_say_what_is_for_heads_alone(compiled: Run) -> None:
    text = (compiled(["parts.0", "kind"]) / "stages.py").read_text()
    assert "# kind, parts_0: for this stage's heads alone\n        return kind, parts_0" in text


def test_a_plan_says_it_in_the_words_of_a_spec(compiled: Run) -> None:
    folder = compiled(["parts.0", "kind", "target"])
    asked = spec_of_plan(folder / "plan.yaml")
    heads = [asked.interface(name).head.context for name in ("parts.0", "parts.1")]
    assert heads == [("target", "parts.0", "kind")] * 2


@pytest.mark.parametrize("hidden_layers", [0, 1, 2])
@pytest.mark.parametrize("context", [["kind"], ["target", "scale", "kind"], ["parts.0"]])
def test_planned_as_large_as_it_is(
    compiled: Run, reference: Run, context: list[str], hidden_layers: int
) -> None:
    folder = compiled(context, ("parts.0",), head={"hidden_layers": hidden_layers, "width": 8})
    (interface,) = read_plan_file(folder / "plan.yaml").interfaces
    heads = reference(folder).run(max_steps=1).heads
    assert interface.head is not None
    assert interface.head.parameters == sum(tensor.numel() for tensor in heads.values())


@pytest.mark.parametrize(
    ("context", "error", "words"),
    [
        (["knd"], SpecError, "no module or operation 'knd'.*kind"),
        (["parts.2"], PartitionError, "see parts.2, which stage2 makes"),
        (["table"], PartitionError, "cannot see table: it is"),
        (["parts.0.linear"], PartitionError, "is inside parts.0"),
        ([], SpecError, "a list of names"),
        ("kind", SpecError, "target, none, or a list of names"),
    ],
)
def test_says_what_cannot_be_seen(
    compiled: Run, context: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match="(?s)" + words):
        compiled(context)


def test_names_are_read_where_no_head_sees_them(compiled: Run) -> None:
    plan = load_bundle(compiled(["kind"], gradient="local")).plan
    assert not any(row.context for row in plan.interfaces)
    assert plan.stages[1].outputs == ("parts_1",)
    with pytest.raises(SpecError, match="knd"):
        compiled(["knd"], gradient="local")


def test_a_plan_that_names_what_is_not_returned(compiled: Run) -> None:
    folder = compiled(["kind"])
    text = (folder / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(
        text.replace("context:\n      - name: kind", "context:\n      - name: x", 1)
    )
    with pytest.raises(RuntimeFault, match="the head is to see x, which stage0 does not return"):
        load_bundle(folder)


@pytest.mark.parametrize("shape", [(), (6,), (5, 6)])
def test_learns_what_only_it_tells(shape: tuple[int, ...]) -> None:
    """A gradient whose sign is that of a label, or of a value at every position."""
    torch.manual_seed(0)
    dtype = torch.int64 if len(shape) < 2 else torch.float32
    seen = () if len(shape) < 2 else (shape[0],)
    size = shape or (6,)

    def explained(beside: bool) -> float:
        given = [(seen, dtype)] if beside else []
        spec = HeadSpec(hidden_layers=1, width=16, context="none")
        head = build_head(size, torch.float32, spec, None, None, None, seed=1, beside=given)
        trainer, loss = HeadTrainer(head, 1e-2), torch.ones(())
        for _ in range(200):
            tells = torch.randint(-1000, 1000, (32, *seen))
            h = torch.randn(32, *size)
            sign = (tells % 2 * 2 - 1 if dtype == torch.int64 else tells.sign()).float()
            gradient = sign.view(32, *seen, *(1,) * (len(size) - len(seen))) * torch.ones(size)
            told = [tells.to(dtype) % 8 if dtype == torch.int64 else tells / 500.0]
            loss = trainer.learn(h, None, gradient, beside=told if beside else ()).loss
        return 1 - float(loss)

    assert explained(True) > 0.5 > 0.1 > explained(False)


def test_integers_share_rows() -> None:
    context = HashedContext((), layout_of((6,)), 3, torch.float32)
    codes = context(torch.tensor([1, 1025, -1023, 2]), 4)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[0], codes[3])


def test_samples_on_another_axis() -> None:
    """Sequence-first: what is seen is turned as the activation is."""
    request = PredictorRequest(
        (TensorSpec("h", (5, "B", 6), "float32", True),),
        HeadPlan(1, 8, "none"),
        context=(TensorSpec("tokens", (5, "B"), "int64", False),),
    )
    predictor = predictor_kind("synthetic").build(request)
    predictor.context = [torch.arange(20).view(5, 4)]
    (predicted,) = predictor.predict([torch.randn(5, 4, 6)], torch.zeros(4), 1)
    assert predicted.shape == (5, 4, 6)
    predictor.learn([torch.randn(5, 4, 6)], torch.zeros(4), [torch.randn(5, 4, 6)])
    assert isinstance(next(iter(predictor.parameters().values())), nn.Parameter)


@pytest.mark.parametrize(
    ("shape", "seen", "rows"),
    [((6,), (), 1025), ((6,), (4,), 4 * 257), ((5, 6), (5,), 1025), ((6,), (99,), 1025)],
)
def test_rows_of_integers(shape: tuple[int, ...], seen: tuple[int, ...], rows: int) -> None:
    """One table for all, or a part of it for each of a sample's few; planned as it is built."""
    spec = HeadSpec(hidden_layers=1, width=4, context="none")
    given = [(seen, torch.int64)]
    head = build_head(shape, torch.float32, spec, None, None, None, beside=given)
    assert head.state_dict()["beside.0.table.weight"].shape == (rows, 4)
    values = [Value("h", ("B", *shape), "float32", 0, True)]
    tokens = Value("tokens", ("B", *seen), "int64", 0, False)
    cost = head_cost(values, 8, 1, 4, load_profile("cpu-core"), beside=(tokens,))
    assert cost.parameters == sum(parameter.numel() for parameter in head.parameters())
