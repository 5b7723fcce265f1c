"""What a stage that is on trial keeps, and when it is put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.runtime.plan import SharedPlan
from dnic.runtime.trial import Trial

Make = Callable[..., Path]
Run = Callable[..., Any]

# A head on trial: used, nothing proven. Then what its guard makes of it.
TRIED = {"tried": True, "regime": "predicted"}
PASSED = {"tried": False, "regime": "predicted"}
FAILED = {"tried": False, "regime": "none"}
AWAITED = {"tried": False, "regime": "exact"}


class Subject:
    """A stage of two layers whose heads do what they are told."""

    def __init__(self, optimizer: str, heads: int = 1, shared: tuple[str, ...] = ()) -> None:
        torch.manual_seed(5)
        self.stage = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.stage[2].bias.requires_grad_(False)
        self.optimizer = getattr(torch.optim, optimizer)(self.stage.parameters(), lr=0.1)
        self.heads = [SimpleNamespace(**FAILED) for _ in range(heads)]
        rows = tuple(SharedPlan(name, (f"{name}.alias",), 0, (1,)) for name in shared)
        self.plan: Any = SimpleNamespace(shared=rows)
        self.trial = self.new_trial()

    def new_trial(self, *others: None) -> Trial:
        return Trial(self.stage, self.optimizer, self.plan, [*self.heads, *others])  # type: ignore[list-item]

    def step(self, *turns: dict[str, Any]) -> None:
        for head, turn in zip(self.heads, turns, strict=True):
            head.__dict__.update(turn)
        self.trial.turned()
        self.optimizer.zero_grad(set_to_none=True)
        self.stage(torch.randn(8, 3)).square().sum().backward()
        self.optimizer.step()
        self.trial.updated()

    def seen(self) -> dict[str, Tensor]:
        """Copies of parameters, and of the state of their optimizer."""
        found = {name: p.detach().clone() for name, p in self.stage.named_parameters()}
        for name, parameter in self.stage.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name} {key}"] = torch.as_tensor(value).clone()
        return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "ASGD", "Rprop"])
@pytest.mark.parametrize("updates", [0, 2])
def test_a_stage_that_failed_is_as_it_was(optimizer: str, updates: int) -> None:
    """Whether it had been updated before or never."""
    subject = Subject(optimizer)
    for _ in range(updates):
        subject.step(FAILED)
    before = subject.seen()
    subject.step(TRIED)
    subject.step(TRIED)
    assert not same(subject.seen(), before)
    subject.step(FAILED)
    assert same(subject.seen(), before)
    assert subject.trial.state_dict() == {}
    subject.step(FAILED)
    assert not same(subject.seen(), before), "only once"


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        pytest.param([[TRIED], [PASSED], [FAILED]], False, id="it had passed"),
        pytest.param([[TRIED, FAILED], [FAILED, FAILED]], True, id="the other does nothing"),
        pytest.param([[TRIED, TRIED], [FAILED, TRIED], [FAILED, FAILED]], True, id="both fail"),
        pytest.param([[TRIED, PASSED], [FAILED, PASSED]], False, id="another head is good"),
        pytest.param([[TRIED, TRIED], [PASSED, TRIED], [FAILED, FAILED]], False, id="one was good"),
        pytest.param([[TRIED, AWAITED], [FAILED, AWAITED]], False, id="another waits"),
        pytest.param([[AWAITED], [FAILED]], False, id="none was used"),
    ],
)
def test_only_what_heads_on_trial_have_done_is_undone(
    turns: list[list[dict[str, Any]]], kept: bool
) -> None:
    subject = Subject("AdamW", heads=len(turns[0]))
    before = subject.seen()
    for row in turns:
        subject.step(*row)
    assert same(subject.seen(), before) == kept


def test_where_an_interface_has_no_head_nothing_is_kept() -> None:
    subject = Subject("AdamW")
    subject.trial = subject.new_trial(None)
    before = subject.seen()
    subject.step(TRIED)
    assert subject.trial.state_dict() == {}
    subject.step(FAILED)
    assert not same(subject.seen(), before)


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_what_other_stages_use_stays(name: str) -> None:
    subject = Subject("AdamW", shared=(name,))
    before = subject.seen()
    subject.step(TRIED)
    subject.step(FAILED)
    now = subject.seen()
    assert {key for key, value in before.items() if not torch.equal(value, now[key])} == {name}
    assert {key.split()[0] for key in now.keys() - before.keys()} == {name}


def test_it_goes_on_where_it_stopped() -> None:
    subject = Subject("AdamW")
    subject.step(FAILED)
    before = subject.seen()
    subject.step(TRIED)
    state = subject.trial.state_dict()
    subject.trial = subject.new_trial()
    subject.trial.load_state_dict(state)
    subject.step(TRIED)
    subject.step(FAILED)
    assert same(subject.seen(), before)


def test_after_a_failed_trial_a_run_is_as_without_a_head(bundle: Make, reference: Run) -> None:
    """Without decay a stage that gets no gradient stays as it is; a guard that never trusts."""
    found = []
    for proof in (1, 99):
        folder = bundle(
            "mlp2",
            plan_keys={
                "train": {
                    "batch_size": 16,
                    "epochs": 3,
                    "seed": 3,
                    "optimizer": {"name": "AdamW", "options": {"lr": 3e-3, "weight_decay": 0.0}},
                }
            },
            guard={
                "check_every": 2,
                "patience": 9,
                "retry_after": 99,
                "minimum": 0.02,
                "fallback": "none",
                "proof": proof,
            },
            head={"hidden_layers": 0, "width": None, "context": "none", "lr": 0.05},
        )
        run = reference(folder)
        record = run.run()
        found.append({name: p for name, p in record.parameters.items() if "layers.0" in name})
        turns = [(turn["step"], turn["regime"]) for turn in run.turns()["cut01"]]
        assert turns == ([(4, "predicted"), (7, "none")] if proof == 1 else [])
    assert same(*found)
