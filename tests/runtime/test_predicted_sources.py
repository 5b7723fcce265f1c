"""Virtual, local and absent gradients in the engine: the reference's bits, messages, resuming."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dnic.runtime.bundle import structure_digest
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

pytestmark = pytest.mark.processes

HEAD = {"hidden_layers": 1, "width": 8, "lr": 2e-2}
# A source of one's own, registered by the model file: the sign of the last true gradient's mean.
OWN = """

from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import register


@register("mine", options={"size": 1.0})
class Mine(Predictor):
    def __init__(self, request):
        self.size = request.head.options.get("size", 1.0)
        self.mean = [torch.zeros(()) for _ in request.tensors]

    def predict(self, tensors, target, microbatches):
        return [
            torch.full_like(h, self.size) * m for h, m in zip(tensors, self.mean, strict=True)
        ]

    def learn(self, tensors, target, gradients):
        self.mean = [g.mean() for g in gradients]
        return None

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state.get("mean", self.mean)

    def parameters(self):
        return {"mean": torch.stack(self.mean)}
"""


def with_own(name: str, text: str) -> str:
    return text + OWN if name == "model.py" else text


@pytest.mark.parametrize(
    ("kind", "gradient", "window", "keys", "arguments"),
    [
        ("mlp2", "virtual", 1, {"warmup_steps": 3}, {}),
        ("mlp3", "virtual", 2, {"head": HEAD | {"one_in": 2}}, {}),
        ("skip3", "virtual", 2, {"head": HEAD | {"task": 0.0}}, {"microbatches": 2}),
        ("conv2", "virtual", 2, {"head": HEAD | {"targets": "sampled"}}, {}),
        ("mlp3", "local", 2, {"warmup_steps": 3}, {}),
        ("conv2", "local", 1, {"head": HEAD | {"targets": "sampled"}}, {"microbatches": 4}),
        ("skip3", "local", 1, {"head": HEAD | {"one_in": 2}}, {}),
        ("skip3", "none", 2, {"warmup_steps": 3}, {"microbatches": 2}),
        ("mlp2", "mine", 2, {"head": {"size": 2.0}}, {}),
        ("mlp3", "mine", 2, {"head": {"size": 2.0}, "guard": True}, {}),
    ],
)
def test_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    gradient: str,
    window: int,
    keys: dict[str, Any],
    arguments: dict[str, int],
    tmp_path: Path,
) -> None:
    """Two and three stages, several tensors on the way, microbatches, warming up."""
    keys = {"head": HEAD} | keys
    folder = bundle(kind, window=window, gradient=gradient, edit=with_own, **keys)
    options = [f"--{name}={value}" for name, value in arguments.items()]
    run_ranks(folder, int(kind[-1]), *options, f"--record={tmp_path / 'record'}")
    expected = reference(folder, **arguments).run()
    found = read_record(tmp_path / "record")
    assert same(found, expected)
    assert bool(found.heads) is (gradient != "none")
    # What is predicted decides what is learnt.
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row in plan["interfaces"]:
        row |= {"gradient": "local" if gradient == "none" else "none", "head": None}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert reference(folder, **arguments).run().losses != expected.losses


def test_a_source_that_does_not_say_how_it_does_is_used(bundle: Make, reference: Run) -> None:
    """The guard waits for the first gradient that it learns from, and then for nothing."""
    made = reference(bundle("mlp2", gradient="mine", edit=with_own, guard=True, head={"size": 2.0}))
    made.run()
    assert [(turn["step"], turn["regime"]) for turn in made.turns()["cut01"]] == [(1, "predicted")]


@pytest.mark.parametrize("gradient", ["virtual", "local"])
def test_oracle_equals_exact(bundle: Make, run_ranks: Run, same: Run, gradient: str) -> None:
    folder = bundle("skip3", gradient=gradient, head=HEAD)
    for mode in ("exact", "oracle"):
        run_ranks(folder, 3, f"--mode={mode}", f"--record={folder / mode}")
    exact, oracle = (read_record(folder / mode) for mode in ("exact", "oracle"))
    assert oracle.heads
    assert same(Record(oracle.losses, oracle.parameters, {}), exact)


@pytest.mark.parametrize(
    ("kind", "gradient", "head"),
    [
        ("skip3", "virtual", HEAD | {"targets": "sampled"}),
        ("mlp2", "virtual", HEAD | {"loss": "model"}),
        ("mlp3", "local", HEAD | {"targets": "sampled"}),
        ("mlp2", "mine", {}),
    ],
)
def test_resumes_bit_for_bit(
    bundle: Make,
    run_ranks: Run,
    same: Run,
    kind: str,
    gradient: str,
    head: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = bundle(kind, gradient=gradient, head=head, edit=with_own)
    if head.get("loss") == "model":
        give_output(folder)
    processes, out = int(kind[-1]), f"--out={tmp_path / 'run'}"
    run_ranks(folder, processes, out, f"--record={tmp_path / 'whole'}")
    resume = f"--resume={tmp_path / 'run' / 'checkpoints' / 'epoch-0001'}"
    run_ranks(folder, processes, out, resume, f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert rest.losses == whole.losses[7:]
    assert all(torch.equal(rest.parameters[n], whole.parameters[n]) for n in whole.parameters)
    assert rest.heads.keys() == whole.heads.keys()
    assert all(torch.equal(rest.heads[n], whole.heads[n]) for n in whole.heads)


def test_another_sources_checkpoint_is_no_obstacle(bundle: Make, run_ranks: Run) -> None:
    """The model goes on; what predicts starts anew."""
    folder = bundle("mlp2", gradient="virtual", head=HEAD)
    run_ranks(folder, 2, "--epochs=1", f"--out={folder / 'run'}")
    text = (folder / "plan.yaml").read_text()
    for gradient in ("local", "synthetic", "none"):
        (folder / "plan.yaml").write_text(text.replace("virtual", gradient))
        run_ranks(folder, 2, f"--resume={folder / 'run'}", f"--out={folder / gradient}")


@pytest.mark.parametrize(
    ("gradient", "keys", "returned"),
    [
        ("virtual", {}, 14),
        ("virtual", {"return_every": 0, "warmup_steps": 3}, 3),
        ("local", {"warmup_steps": 3}, 3),
        ("local", {}, 0),
        ("none", {"return_every": 1}, 0),
    ],
)
def test_gradients_that_nobody_needs_are_not_sent(
    bundle: Make, run_ranks: Run, gradient: str, keys: dict[str, Any], returned: int
) -> None:
    """Rank 1 sends nothing but gradients: 14 batches of 16 samples, the last of each epoch of 4."""
    folder = bundle("mlp2", gradient=gradient, head=HEAD, **keys)
    run_ranks(folder, 2, f"--out={folder / 'run'}")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    sent = sum(epoch["sent_bytes"][1] for epoch in epochs)
    sizes = ([16] * 6 + [4]) * 2
    assert sent == sum(size * 32 * 4 for size in sizes[:returned])
    # A page for each of three messages; as many back where any come back.
    assert epochs[-1]["in_flight_bytes"][1] == 3 * mmap.PAGESIZE * (2 if returned else 1)
    row = epochs[-1]["interfaces"]["cut01"]
    assert row["gradient"] == gradient
    assert (row["cosine"] is not None) is (returned == 14)


def give_output(folder: Path) -> None:
    """What the compiler writes of the model's output."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["stages"][-1]["operations"] += [
        {"name": "logits", "kind": "module", "inputs": [], "shape": ["B", 5]},
        {"name": "output", "kind": "output", "inputs": ["logits"], "shape": None},
    ]
    plan["stages"][-1]["operations"] = plan["stages"][-1]["operations"][-2:]
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    text = (folder / "stages.py").read_text()
    before, after = text.split('PLAN = "', 1)
    text = f'{before}PLAN = "{structure_digest(plan)}"{after.split(chr(34), 1)[1]}'
    (folder / "stages.py").write_text(text)
    plan["files"]["stages.py"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
