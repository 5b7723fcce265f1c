"""Every scheduler of torch that YAML can name is built, stepped, kept and restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.checkpoint import _as_bytes, _from_bytes, _joined, _split
from dnic.runtime.lr import LearningRate, build_scheduler
from dnic.runtime.plan import LrSchedulerPlan
from dnic.spec.scheduler import SCHEDULERS

STEPS = 9
OPTIONS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 6], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "LinearLR": {"start_factor": 0.1, "total_iters": 6},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 7, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 6},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 10},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "SequentialLR": {
        "schedulers": [
            {"name": "LinearLR", "options": {"total_iters": 3}},
            {"name": "MultiStepLR", "options": {"milestones": [1, 2]}},
        ],
        "milestones": [6],  # after the checkpoint: what is joined has not begun
    },
    "ChainedScheduler": {
        "schedulers": [
            {"name": "ConstantLR", "options": {"total_iters": 4}},
            {"name": "ExponentialLR", "options": {"gamma": 0.9}},
        ]
    },
}
OF_FUNCTIONS = {"LambdaLR", "MultiplicativeLR"}


def run(name: str, *, steps: int) -> tuple[torch.optim.Optimizer, LearningRate]:
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
    plan = LrSchedulerPlan(name, OPTIONS[name], "step")
    rate = LearningRate(build_scheduler(plan, optimizer), "step")
    go_on(optimizer, rate, steps)
    return optimizer, rate


def go_on(optimizer: torch.optim.Optimizer, rate: LearningRate, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        optimizer.step()
        rate.updated()
        rate.trained(1)
        rate.evaluated(1.0)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_all_of_torch_are_tried() -> None:
    assert SCHEDULERS.keys() == OPTIONS.keys() | OF_FUNCTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_a_restored_scheduler_goes_on_as_if_nothing_had_been(name: str) -> None:
    optimizer, rate = run(name, steps=0)
    whole = go_on(optimizer, rate, STEPS)
    assert len(set(whole)) > 1
    optimizer, rate = run(name, steps=4)
    tensors: dict[str, torch.Tensor] = {}
    state = {"optimizer": optimizer.state_dict(), "scheduler": rate.state_dict()}
    kept = _as_bytes(_split(state, "x", tensors))  # as a checkpoint does
    optimizer, rate = run(name, steps=0)
    state = _joined(_from_bytes(kept), tensors)
    optimizer.load_state_dict(state["optimizer"])
    rate.load_state_dict(state["scheduler"])
    assert go_on(optimizer, rate, STEPS - 4) == whole[4:]


def test_the_interval_counts_and_plateau_waits_for_its_evaluation() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    rate = LearningRate(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "epoch")
    optimizer.step()
    rate.updated()
    rate.evaluated(1.0)
    assert optimizer.param_groups[0]["lr"] == 1.0
    rate.trained(1)
    rate.check_evaluated()
    assert optimizer.param_groups[0]["lr"] == 0.5

    rate = LearningRate(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0))
    for loss in (1.0, 2.0):  # before any training: of no meaning
        rate.evaluated(loss)
    rate.trained(1)
    with pytest.raises(RuntimeFault, match="nothing was evaluated after epoch 1"):
        rate.check_evaluated()
    for loss in (1.0, 9.0):  # the second evaluation of an epoch does not count
        rate.evaluated(loss)
    assert optimizer.param_groups[0]["lr"] == 0.5
    rate.trained(2)
    rate.evaluated(1.5)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_what_torch_refuses_is_said_by_name() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    for plan, problem in (
        (LrSchedulerPlan("Cosine", {}), "no scheduler 'Cosine'"),
        (LrSchedulerPlan("LRScheduler", {}), "no scheduler 'LRScheduler'"),
        (LrSchedulerPlan("StepLR", {"gama": 1}), "StepLR refuses its options"),
        (LrSchedulerPlan("SequentialLR", {"schedulers": [{}], "milestones": []}), "SequentialLR"),
    ):
        with pytest.raises(RuntimeFault, match=problem):
            build_scheduler(plan, optimizer)
    cycle = LrSchedulerPlan("OneCycleLR", {"max_lr": 1.0, "total_steps": 2})
    rate = LearningRate(build_scheduler(cycle, optimizer), "step")
    with pytest.raises(RuntimeFault, match="OneCycleLR cannot go on: Tried to step"):
        go_on(optimizer, rate, 5)


def test_a_checkpoint_without_a_scheduler_goes_on_without_one() -> None:
    LearningRate().load_state_dict(None)
    _, rate = run("StepLR", steps=1)
    with pytest.raises(RuntimeFault, match="with the scheduler None, and plan"):
        rate.load_state_dict(None)
