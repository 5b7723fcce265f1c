"""Stages of several replicas compute what one process computes, and stay copies of one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime import registry
from dnic.runtime.batches import Header
from dnic.runtime.bundle import load_bundle
from dnic.runtime.checkpoint import load_full_state_dict
from dnic.runtime.links import Count
from dnic.runtime.place import Place, check_processes
from dnic.runtime.plan import Mode, TensorSpec
from dnic.runtime.predictors.nothing import Nothing
from dnic.runtime.record import Record, read_record
from dnic.runtime.reference_replicas import ReplicatedReference
from dnic.runtime.registry import predictor_kind, register
from dnic.runtime.replicas import Replicas
from dnic.runtime.setting import check_replicated
from dnic.runtime.sharding import check_sharding, shard_stage

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Make = Callable[..., Path]
Run = Callable[..., Any]

# AdamW divides by the size of a gradient and so makes much of a rounding difference.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
TRAIN = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}


def keys(**schedule: Any) -> dict[str, Any]:
    """The keys of a plan with two replicas of each stage."""
    train = TRAIN | schedule.pop("train", {})
    return {"train": train, "schedule": {"replicas": 2, **schedule}}


def samples(number: int) -> Callable[[str, str], str]:
    return lambda name, text: text.replace("_data(100, 1)", f"_data({number}, 1)")


def assert_near(run: Record, other: Record, **tolerance: float) -> None:
    near = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    torch.testing.assert_close(run.losses, other.losses, **near)
    assert run.parameters.keys() == other.parameters.keys()
    torch.testing.assert_close(run.parameters, other.parameters, **near)


def assert_copies(folder: Path, *, heads: int = 0, replicas: int = 2) -> None:
    """The replicas of both stages hold the same bits."""
    for stage in (0, 1):
        first = stage * replicas
        own = torch.load(folder / f"rank{first}.pt", weights_only=True)
        assert own["parameters"]
        assert len(own["heads"]) == (0 if stage else heads)
        for copy in range(first + 1, first + replicas):
            other = torch.load(folder / f"copy{copy}.pt", weights_only=True)
            for part in ("parameters", "heads"):
                assert own[part].keys() == other[part].keys()
                for name in own[part].keys() - {"offset"}:  # a buffer is each replica's own
                    assert torch.equal(own[part][name], other[part][name]), name


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(
    ("replicas", "number", "microbatches"),
    [
        pytest.param(3, 98, 1, id="a replica without a sample"),
        pytest.param(2, 99, 2, id="microbatches, a batch that does not divide"),
    ],
)
def test_exact_replicas_train_as_backprop(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    tmp_path: Path,
    replicas: int,
    number: int,
    microbatches: int,
    shard: bool,
) -> None:
    schedule = {"mode": "exact", "microbatches": microbatches, "shard": shard}
    plan = keys(**schedule, replicas=replicas)
    folder = bundle("mlp2", edit=samples(number), plan_keys=plan)
    arguments = ("--no-dropout", f"--record={tmp_path / 'run'}", f"--out={tmp_path}")
    run_ranks(folder, 2 * replicas, *arguments)
    run = read_record(tmp_path / "run")
    assert len(run.losses) == 14
    assert_near(run, reference(folder, mode="exact", dropout=False).run())
    assert_copies(tmp_path / "run", replicas=replicas)
    saved = load_full_state_dict(tmp_path)
    assert saved.keys() == run.parameters.keys()
    assert all(torch.equal(saved[name], run.parameters[name]) for name in saved)


@pytest.mark.parametrize(("microbatches", "shard"), [(1, False), (2, True)])
def test_decoupled_replicas_learn_as_one(
    bundle: Make, run_ranks: Run, reference: Run, tmp_path: Path, microbatches: int, shard: bool
) -> None:
    """Stages and heads that average learn what single ones learn from whole batches."""
    schedule = {"microbatches": microbatches, "shard": shard}
    folder = bundle("mlp2", edit=samples(97), plan_keys=keys(**schedule), warmup_steps=2)
    run_ranks(folder, 4, "--no-dropout", f"--record={tmp_path / 'run'}", f"--out={tmp_path}")
    run = read_record(tmp_path / "run")
    whole = reference(folder, dropout=False, microbatches=microbatches).run()
    assert_near(run, whole, rtol=1e-4, atol=1e-5)
    assert run.heads.keys() == whole.heads.keys()
    # The heads' Adam divides by the size of a gradient.
    torch.testing.assert_close(run.heads, whole.heads, rtol=1e-2, atol=1e-4)
    assert_copies(tmp_path / "run", heads=len(whole.heads))
    result = json.loads((tmp_path / "result.json").read_text())
    last = [loss * size for loss, size in zip(whole.losses[7:], [16] * 6 + [1], strict=True)]
    assert result["train_loss"] == pytest.approx(sum(last) / 97, rel=1e-3)
    assert result["world_size"] == 4


@pytest.mark.parametrize(
    ("mode", "kind", "microbatches"),
    [("decoupled", "mlp2", 2), ("exact", "conv2", 1), ("oracle", "mlp2", 1), ("stale", "mlp2", 1)],
)
def test_replicas_have_the_references_bits(
    bundle: Make,
    run_ranks: Run,
    load_module: Run,
    same: Run,
    tmp_path: Path,
    mode: Any,
    kind: str,
    microbatches: int,
) -> None:
    """With AdamW, dropout or BatchNorm, microbatches, and a replica without a sample."""
    adam = {"optimizer": {"name": "AdamW", "options": {"lr": 3e-3}}, "clip_norm": 0.5}
    folder = bundle(kind, edit=samples(97), plan_keys=keys(train=adam), warmup_steps=2)
    arguments = f"--mode={mode}", f"--microbatches={microbatches}"
    run_ranks(folder, 4, *arguments, f"--record={tmp_path / 'run'}")
    model, stages = load_module(folder / "model.py"), load_module(folder / "stages.py")
    given = load_bundle(folder), stages, model.build_model, model.loss, model.train_data
    reference = ReplicatedReference(*given, mode=mode, microbatches=microbatches)
    assert same(read_record(tmp_path / "run"), reference.run())


def statistics_kept(name: str, text: str) -> str:
    """A buffer that follows the samples and changes the output; one that cannot be written."""
    constant = 'self.register_buffer("one", torch.ones(1).expand(12), persistent=False)'
    buffer = 'self.register_buffer("offset", torch.zeros(12))'
    line = "        x = x * self.scale + self.offset\n"
    follow = "        with torch.no_grad():\n            self.offset.lerp_(x.mean(0), 0.1)\n"
    text = text.replace(buffer, f"{buffer}\n        {constant}").replace(
        '"scale", ', '"scale", "one", '
    )
    return text.replace(line, f"{follow}{line}" if name == "stages.py" else line)


@pytest.mark.parametrize(
    "schedule", [pytest.param({}, id="whole"), pytest.param({"shard": True}, id="in parts")]
)
def test_resumed_run_gives_the_same_bits(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    """With AdamW, dropout and a changing buffer; so it is the same from run to run, too."""
    adam = {"name": "AdamW", "options": {"lr": 3e-3}}
    plan = keys(train={"optimizer": adam}, **schedule)
    folder = bundle("mlp2", edit=statistics_kept, plan_keys=plan, warmup_steps=1)
    for name, options in (
        ("whole", ["--epochs=2"]),
        ("first", ["--epochs=1"]),
        ("then", ["--epochs=2", f"--resume={tmp_path / 'first'}"]),
    ):
        record = f"--record={tmp_path / name / 'record'}"
        run_ranks(folder, 4, f"--out={tmp_path / name}", record, *options)
    whole, then = (read_record(tmp_path / name / "record") for name in ("whole", "then"))
    assert len(whole.losses) == 14
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), then)
    assert_copies(tmp_path / "then" / "record", heads=len(whole.heads))
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "then")
    ]
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


@pytest.mark.parametrize("mode", ["exact", "decoupled"])
def test_the_norm_of_parts_is_that_of_the_whole(
    bundle: Make, run_ranks: Run, reference: Run, tmp_path: Path, mode: str
) -> None:
    plan = keys(train={"clip_norm": 0.05, "epochs": 1}, shard=True)
    folder = bundle("mlp2", plan_keys=plan)
    arguments = ("--no-dropout", f"--mode={mode}", f"--record={tmp_path / 'run'}")
    run_ranks(folder, 4, *arguments)
    clipped = reference(folder, mode=mode, dropout=False).run()
    assert_near(read_record(tmp_path / "run"), clipped, rtol=1e-4, atol=1e-5)


TIED = """import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.middle(self.embed(ids))))


build_model = Tied


def loss(output, target):
    return F.cross_entropy(output, target)


def train_data():
    ids = torch.arange(45) % 13
    return TensorDataset(ids, (ids * 3 + 1) % 13)


test_data = train_data
"""

TIED_TWO = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "embed")

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids)


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "middle", "head")

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(hidden)))


STAGES = (Stage0, Stage1)
"""


@pytest.mark.parametrize("mode", ["exact", "decoupled"])
def test_replicas_of_stages_that_share_a_parameter(
    bundle: Make,
    rows: SimpleNamespace,
    run_ranks: Run,
    reference: Run,
    tmp_path: Path,
    mode: str,
) -> None:
    stages = [rows.stage(0, ["ids"], ["hidden"], "a"), rows.stage(1, ["hidden"], ["output"], "b")]
    cuts = [rows.interface(0, 1, rows.tensor("hidden", 16))]
    weight = {"name": "embed.weight", "aliases": ["head.weight"], "owner": 0, "holders": [1]}
    target = {"shape": ["B"], "dtype": "int64", "classes": 13}
    folder = bundle(
        (TIED, TIED_TWO, stages, cuts), plan_keys={**keys(), "shared": [weight], "target": target}
    )
    run_ranks(folder, 4, f"--mode={mode}", f"--record={tmp_path / 'run'}")
    whole = reference(folder, mode=mode).run()
    assert_near(read_record(tmp_path / "run"), whole, rtol=1e-4, atol=1e-5)
    assert_copies(tmp_path / "run", heads=len(whole.heads))


# All of torch.compile but the C++ compiler, which takes a minute for these stages.
QUICK = "torch.compile = functools.partial(torch.compile, backend='aot_eager')"


def test_forwards_of_every_kind_have_replicas(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    """With BatchNorm; recomputed ones have blocks, each gathered by itself where it is in parts."""

    def edit(name: str, text: str) -> str:
        quick = f"import functools\nimport model\nimport torch\n{QUICK}\n"
        return text.replace("import model\n", quick) if name == "train.py" else text

    records = {}
    for name, train, schedule in (
        ("plain", {}, {}),
        ("parts", {"recompute": True}, {"shard": True}),
        ("compiled", {"compile": True, "recompute": True}, {}),
        ("bf16", {"precision": "bf16"}, {"shard": True}),
    ):
        plan = keys(train={"epochs": 1, "batch_size": 20, **train}, mode="exact", **schedule)
        folder = bundle("conv2", edit=edit, plan_keys=plan)
        run_ranks(folder, 4, f"--record={tmp_path / name}", "--no-evaluate", "--no-checkpoint")
        records[name] = read_record(tmp_path / name)
    plain = records.pop("plain")
    assert len(plain.losses) == 5
    assert_near(records["parts"], plain)
    assert_near(records["compiled"], plain, rtol=1e-4, atol=1e-5)
    assert records["bf16"].losses != plain.losses
    assert_near(records["bf16"], plain, rtol=5e-2, atol=5e-2)


def test_frozen_stage_has_replicas(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    def frozen(name: str, text: str) -> str:
        left = "for p in (self.scale, *self.layers[:2].parameters()):"
        last = "        self.last = nn.Linear(32, 5)\n"
        return text.replace(last, f"{last}        {left}\n            p.requires_grad_(False)\n")

    for shard in (False, True):
        plan = keys(mode="exact", shard=shard, train={"epochs": 1})
        folder = bundle("mlp2", edit=frozen, plan_keys=plan)
        run_ranks(folder, 4, "--no-dropout", f"--record={tmp_path / str(shard)}")
    run_ranks(folder, 1, "--no-dropout", "--mode=backprop", f"--record={tmp_path / 'whole'}")
    for shard in (False, True):
        run, whole = read_record(tmp_path / str(shard)), read_record(tmp_path / "whole")
        assert_near(run, whole)
        assert_copies(tmp_path / str(shard))


def test_a_run_may_do_without_the_planned_replicas(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2", plan_keys=keys(shard=True, train={"epochs": 1}))
    run_ranks(folder, 2, "--replicas=1", f"--record={tmp_path / 'run'}")
    assert same(read_record(tmp_path / "run"), reference(folder).run())


def test_every_stage_by_itself_takes_its_share(
    bundle: Make, run_ranks: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2", plan_keys=keys(shard=True, train={"epochs": 1}))
    run_ranks(folder, 4, "--mode=alone", f"--out={tmp_path}")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 7
    assert result["world_size"] == 4


def test_a_failing_replica_ends_the_others(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    def failing(name: str, text: str) -> str:
        broken = "import os\n        if os.environ['RANK'] == '3': raise KeyError('broken')\n"
        last = "        return self.last("
        return text.replace(last, f"        {broken}{last}") if name == "stages.py" else text

    folder = bundle("mlp2", edit=failing, plan_keys=keys())
    assert run_ranks(folder, 4, f"--out={tmp_path}", fails=True) == [1] * 4
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert (failure["rank"], failure["stage"]) == (3, 1)
    assert "broken" in failure["message"]


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ({"replicas": 0}, "replicas 0 is too small"),
        ({"replicas": 2, "shard": "yes"}, "shard cannot be 'yes'"),
        ({"replicas": 1, "shard": True}, "there is one"),
        ({"replicas": 2, "mode": "gpipe"}, "mode gpipe has no replicas"),
        ({"replicas": 2, "mode": "ddp"}, "mode ddp has no replicas"),
    ],
)
def test_wrong_schedules_are_refused(bundle: Make, schedule: dict[str, Any], problem: str) -> None:
    folder = bundle("mlp2", plan_keys={"schedule": schedule})
    with pytest.raises(RuntimeFault, match=problem):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("train", "mode", "problem"),
    [
        ({"compile": True}, "exact", "cannot go with torch.compile"),
        ({"optimizer": {"name": "Muon", "options": {}}}, "exact", "the optimizer Muon"),
        ({}, "stale", "stage 0, whose gradients are late"),
        ({}, "exact", None),
        ({}, "gpipe", None),
        ({"compile": True}, "backprop", None),
    ],
)
def test_what_cannot_lie_in_parts(
    bundle: Make, train: dict[str, Any], mode: Any, problem: str | None
) -> None:
    plan = load_bundle(bundle("mlp2", plan_keys=keys(shard=True, train=train))).plan
    if problem is None:
        check_sharding(plan, mode)
        return
    with pytest.raises(RuntimeFault, match=problem):
        check_sharding(plan, mode)


@pytest.mark.parametrize(
    ("gradient", "mode", "refused"),
    [
        ("alone", "decoupled", True),
        ("alone", "oracle", True),
        ("alone", "exact", False),
        ("alone", "stale", False),
        ("virtual", "decoupled", False),
        ("local", "oracle", False),
        ("none", "decoupled", False),
        ("synthetic", "decoupled", False),
        ("stale", "decoupled", False),
    ],
)
def test_what_does_not_learn_in_replicas(
    bundle: Make, gradient: str, mode: Any, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in registry.BUILT_IN:
        predictor_kind(name)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    register("alone", replicated=False)(Nothing)
    plan = load_bundle(bundle("mlp2", plan_keys=keys())).plan
    rows = tuple(replace(row, gradient=gradient) for row in plan.interfaces)
    plan = replace(plan, interfaces=rows)
    if not refused:
        check_replicated(plan, mode)
        return
    with pytest.raises(RuntimeFault, match=f"{gradient} does not learn in several replicas"):
        check_replicated(plan, mode)
    check_replicated(replace(plan, schedule=replace(plan.schedule, replicas=1)), mode)


def test_a_parameter_without_axes_cannot_lie_in_parts() -> None:
    stage = nn.Linear(2, 2)
    stage.temperature = nn.Parameter(torch.ones(()))
    with pytest.raises(RuntimeFault, match="cannot divide temperature"):
        shard_stage(stage, cast("DeviceMesh", None))


def test_the_number_of_processes_follows_from_the_replicas(bundle: Make) -> None:
    plan = load_bundle(bundle("mlp2", plan_keys=keys())).plan
    processes = {mode: plan.processes(mode) for mode in get_args(Mode)}
    assert {mode for mode, number in processes.items() if number == 4} == {
        "decoupled",
        "stale",
        "exact",
        "oracle",
        "alone",
        "ddp",
    }
    assert processes["1f1b"] == processes["gpipe"] == 2
    check_processes(Place(3, 3, 4, True), plan, "stale")
    with pytest.raises(RuntimeFault, match="2 stages of 2 replicas each") as refused:
        check_processes(Place(0, 0, 2, True), plan, "exact")
    assert "--nproc-per-node=4 train.py --mode exact" in str(refused.value)


def test_replicas_are_neighbours() -> None:
    places = [Place(rank, rank, 6, True, replicas=2) for rank in range(6)]
    assert [(place.stage, place.replica) for place in places] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert [places[3].rank_of(stage) for stage in range(3)] == [1, 3, 5]
    assert places[0].stages == 3
    tags = {place.tag_of(link) for place in places for link in range(4)}
    assert len(tags) == 8  # a link of one column is none of another


@pytest.mark.parametrize("size", [1, 2, 7, 9])
def test_shares_weigh_what_they_hold(size: int) -> None:
    header = Header(Count(3, 9, size), TensorSpec("target", ("B",), "int64", False), 3, False)
    replicas = [Replicas(index, 3) for index in range(3)]
    weights = [replica.weight(size) for replica in replicas]
    assert sum(weights) == pytest.approx(3)
    for replica, weight in zip(replicas, weights, strict=True):
        part = replica.part(header)
        assert part.count.batch_size == 3
        assert part.count.last_batch_size == max(1, round(weight * size / 3))
    assert Replicas().weight(size) == 1
    assert Replicas().part(header) is header
