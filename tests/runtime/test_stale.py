"""Late true gradients: the bits of the reference, and of a program in plain torch."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dnic.runtime.batches import Batches
from dnic.runtime.inputs import Inputs
from dnic.runtime.plan import SamplePlan
from dnic.runtime.record import Record, read_record
from dnic.runtime.stash import WeightStash

Make = Callable[..., Path]
Run = Callable[..., Any]


def edited(folder: Path, *gradients: str) -> Path:
    """The same bundle with these gradients at its interfaces."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, gradient in zip(plan["interfaces"], gradients, strict=True):
        row["gradient"] = gradient
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "window", "warmup_steps"),
    [
        ("mlp2", 1, 0),
        ("conv2", 2, 0),
        ("mlp3", 1, 9),
        ("mlp3", 2, 0),
        ("skip3", 2, 0),
        ("skip3", 2, 3),
    ],
)
def test_stale_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    window: int,
    warmup_steps: int,
    tmp_path: Path,
) -> None:
    """Two epochs of seven steps; of three stages the first is late by twice the window."""
    folder = bundle(kind, window=window, warmup_steps=warmup_steps)
    run_ranks(folder, int(kind[-1]), "--mode=stale", f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert not record.heads
    assert same(record, reference(folder, mode="stale").run())
    result = json.loads((folder / "runs/stale/result.json").read_text())
    assert {row["gradient"] for row in result["interfaces"].values()} == {"stale"}
    latest = max(row["lateness_max"] for row in result["interfaces"].values())
    assert latest == window * (int(kind[-1]) - 1)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "gradients", "keys"),
    [
        ("mlp3", ("synthetic", "stale"), {"warmup_steps": 3, "return_every": 1}),
        ("mlp3", ("stale", "synthetic"), {"warmup_steps": 3, "message": "bfloat16"}),
        ("mlp3", ("exact", "stale"), {}),
        ("skip3", ("synthetic", "stale", "exact"), {"warmup_steps": 3}),
        ("mlp3", ("virtual", "stale"), {"warmup_steps": 9}),
    ],
)
def test_stale_beside_other_sources(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    gradients: tuple[str, ...],
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = edited(bundle(kind, **keys), *gradients)
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())


@pytest.mark.processes
def test_the_first_to_have_warmed_up_ends_it_for_all(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """While nothing is late the run is exact; the losses tell when that ends."""
    folder = bundle("mlp3", gradient="stale")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, steps in zip(plan["interfaces"], (5, 3), strict=True):
        row["warmup_steps"] = steps
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_ranks(folder, 3, f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert same(record, reference(folder).run())
    exact = reference(folder, mode="exact").run().losses
    assert record.losses[:4] == exact[:4]
    assert record.losses[4] != exact[4], "step 3 updates nothing below the last stage"


@pytest.mark.processes
def test_an_epoch_shorter_than_the_lateness(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """Nothing goes back before the end; then all of it does."""
    folder = bundle("mlp3", window=5)
    arguments = ("--mode=stale", "--max-steps=3", f"--record={tmp_path / 'record'}")
    run_ranks(folder, 3, *arguments)
    assert same(read_record(tmp_path / "record"), reference(folder, mode="stale").run(max_steps=3))


@pytest.mark.processes
def test_stale_resumes_bit_for_bit(bundle: Make, run_ranks: Run, same: Run, tmp_path: Path) -> None:
    folder = bundle("conv2")
    whole, out = tmp_path / "whole", tmp_path / "b"
    stale = "--mode=stale"
    run_ranks(folder, 2, stale, f"--record={whole}", f"--out={tmp_path / 'a'}")
    run_ranks(folder, 2, stale, "--epochs=1", f"--out={out}")
    run_ranks(folder, 2, stale, f"--resume={out}", f"--out={out}", f"--record={tmp_path / 'rest'}")
    expected = read_record(whole)
    rest = Record(expected.losses[7:], expected.parameters, {})
    assert same(rest, read_record(tmp_path / "rest"))


@pytest.mark.processes
@pytest.mark.parametrize(("window", "warmup_steps"), [(1, 0), (2, 0), (2, 9)])
def test_stale_equals_plain_torch(
    bundle: Make,
    run_ranks: Run,
    load_module: Run,
    window: int,
    warmup_steps: int,
    tmp_path: Path,
) -> None:
    """Every batch has a copy of the first half to go forward through, and back again, late."""
    folder = bundle("conv2", window=window, warmup_steps=warmup_steps)
    run_ranks(folder, 2, "--mode=stale", f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")

    user = load_module(folder / "model.py")
    model = user.build_model()
    model.load_state_dict(load_file(folder / "init.safetensors"))
    low = model.blocks[:2]
    high = nn.ModuleList([model.blocks[2], model.last])
    steps = [torch.optim.AdamW(half.parameters(), lr=3e-3) for half in (low, high)]
    losses: list[float] = []
    late: deque[tuple[nn.Module, Tensor, Tensor]] = deque()

    def go_back() -> None:
        then, hidden, gradient = late.popleft()
        hidden.backward(gradient)
        for parameter, old in zip(low.parameters(), then.parameters(), strict=True):
            parameter.grad = old.grad
        steps[0].step()

    batches = Batches(
        user.train_data(), 16, shuffle=True, seed=3, loader_options={}, samples=SamplePlan()
    )
    for epoch in (1, 2):
        for batch, target in batches.epoch(epoch):
            (inputs,) = Inputs(SamplePlan()).take(batch, len(target))
            then = copy.deepcopy(low)
            then.zero_grad()
            hidden = then(inputs)
            low.load_state_dict(low.state_dict() | dict(then.named_buffers()))
            leaf = hidden.detach().requires_grad_()
            loss = user.loss(model.last(model.blocks[2](leaf).mean((2, 3))), target)
            steps[1].zero_grad()
            loss.backward()
            steps[1].step()
            losses.append(loss.item())
            assert leaf.grad is not None
            late.append((then, hidden, leaf.grad))
            if len(losses) <= warmup_steps or len(late) > window:
                go_back()
        while late:
            go_back()
    assert losses == record.losses
    state = model.state_dict()
    for name, value in record.parameters.items():
        assert torch.equal(value, state[name]), name


def test_stale_differs_from_exact(bundle: Make, reference: Run) -> None:
    folder = bundle("mlp2")
    stale, exact = (reference(folder, mode=mode).run() for mode in ("stale", "exact"))
    assert stale.losses[:3] != exact.losses[:3], "the first stage does not update at first"


def test_weights_stay_as_they_were_for_those_who_need_them() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False))
    module[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    stash = WeightStash(module)
    inputs, ones = torch.randn(3, 4), torch.ones(3, 4)

    def expected() -> list[Tensor]:
        twin = copy.deepcopy(module)
        twin(inputs).backward(ones)
        return [p.grad for p in twin.parameters() if p.grad is not None]

    open_ = []
    for _ in range(3):
        output, weights = stash.forward((inputs,))
        assert isinstance(output, Tensor)
        open_.append((output, weights, expected()))
        stash.keep()
        kept = module[0].weight.data_ptr()
        stash.keep()
        assert module[0].weight.data_ptr() == kept, "nobody holds the new memory yet"
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for output, weights, gradients in open_:
        optimizer.zero_grad(set_to_none=True)
        output.backward(ones)
        stash.collect(weights)
        found = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    assert not torch.equal(open_[0][2][0], open_[2][2][0])
