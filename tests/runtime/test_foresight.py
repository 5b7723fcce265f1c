"""Weights that late stages predict: by hand, and in the engine as in the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.foresight import Foresight
from dnic.runtime.record import read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

UPDATES = 5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 1e-4}),
    ],
)
def test_momentum_that_stays_leads_to_what_was_foreseen(kind: Any, options: dict[str, Any]) -> None:
    """A gradient that keeps the momentum as it is moves the weights as predicted."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    optimizer = kind(layer.parameters(), **options)
    gradients = [torch.randn_like(p) for p in layer.parameters()]
    momentum = options.get("momentum", 0.0)
    for step in range(3 + UPDATES):
        if step == 3:
            foreseen = Foresight(layer, optimizer).weights(UPDATES)
            started = [p.detach().clone() for p in layer.parameters()]
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
            if momentum and step:
                parameter.grad.mul_(1 - momentum)  # the buffer stays at the first gradient
        optimizer.step()
    for (name, reached), start in zip(layer.named_parameters(), started, strict=True):
        assert torch.allclose(foreseen[name], reached, atol=1e-5)
        assert not torch.allclose(start, reached, atol=1e-2)


def test_nothing_is_foreseen_before_the_first_step_or_without_updates() -> None:
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    foresight = Foresight(layer, optimizer)
    assert foresight.weights(3) == {}
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert foresight.weights(3).keys() == {"weight", "bias"}
    assert foresight.weights(0) == {}
    layer.bias.requires_grad_(False)
    assert foresight.weights(3).keys() == {"weight"}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD without momentum"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
    ],
)
def test_optimizers_without_momentum_are_refused(make: Any, named: str) -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(RuntimeFault, match=f"the weights of {named} cannot be predicted"):
        Foresight(layer, make(layer.parameters()))


def foreseeing(folder: Path, *names: str) -> Path:
    """The bundle with late gradients, and weights predicted at these interfaces."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row in plan["interfaces"]:
        row["predict_weights"] = row["name"] in names and row["gradient"] == "stale"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("mlp3", {"name": "AdamW", "options": {"lr": 3e-3}}),
        ("conv2", {"name": "SGD", "options": {"lr": 0.05, "momentum": 0.9}}),
        ("skip3", {"name": "Adam", "options": {"lr": 3e-3}}),
    ],
)
def test_equals_reference(
    bundle: Make, as_reference: Run, reference: Run, kind: str, optimizer: dict[str, Any]
) -> None:
    """Two epochs, so that some batches are foreseen by fewer updates than the lateness."""
    train = {"batch_size": 16, "epochs": 2, "optimizer": optimizer, "seed": 3}
    folder = bundle(kind, window=2, gradient="stale", plan_keys={"train": train})
    plain = reference(folder).run()
    foreseeing(folder, "cut01", "cut12")
    assert as_reference(folder, int(kind[-1])).losses != plain.losses


@pytest.mark.processes
@pytest.mark.parametrize(("window", "warmup_steps"), [(1, 9), (2, 0)])
def test_in_turns_with_local_losses_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    window: int,
    warmup_steps: int,
    tmp_path: Path,
) -> None:
    """What `auto` plans for four stages: lateness ends at the local loss in between."""
    optimizer = {"name": "AdamW", "options": {"lr": 3e-3}}
    train = {"batch_size": 16, "epochs": 2, "optimizer": optimizer, "seed": 3}
    keys = {"gradient": "stale", "warmup_steps": warmup_steps, "plan_keys": {"train": train}}
    folder = bundle("mlp4", window=window, **keys)
    foreseeing(folder, "cut01", "cut23")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][1] |= {"gradient": "local", "return_every": 0}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    stages = reference(folder)._stages
    assert [stage.late for stage in stages] == [window, 0, window, 0]
    assert [stage.foresight is not None for stage in stages] == [True, False, True, False]
    run_ranks(folder, 4, f"--record={tmp_path / 'record'}")
    record = read_record(tmp_path / "record")
    assert same(record, reference(folder).run())
    assert {name.split(".")[0] for name in record.heads} == {"cut12"}


def test_an_exact_interface_below_a_late_stage_foresees_with_it(
    bundle: Make, reference: Run
) -> None:
    folder = bundle("mlp3", window=2, gradient="stale")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][0]["gradient"] = "exact"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    foreseeing(folder, "cut12")
    stages = reference(folder)._stages
    assert [stage.foresight is not None for stage in stages] == [True, True, False]


def test_predicted_weights_are_less_stale_on_a_late_quadratic() -> None:
    """Momentum on a quadratic, gradients 4 updates late: foreseen weights lose less."""
    losses = {}
    for predict in (False, True):
        weight = nn.Linear(8, 1, bias=False)
        nn.init.ones_(weight.weight)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.02, momentum=0.9)
        foresight, late = Foresight(weight, optimizer), []
        for _ in range(60):
            used = weight.weight.detach()
            if predict:
                used = foresight.weights(len(late)).get("weight", used)
            late.append(used.clone())  # the gradient of half of its square
            if len(late) > 4:
                weight.weight.grad = late.pop(0)
                optimizer.step()
        losses[predict] = float(weight.weight.detach().square().sum())
    assert losses[True] < 0.1 * losses[False]


@pytest.mark.processes
def test_refused_where_the_optimizer_has_no_momentum(bundle: Make, run_ranks: Run) -> None:
    train = {"batch_size": 16, "epochs": 1, "seed": 3}
    train["optimizer"] = {"name": "SGD", "options": {"lr": 0.1}}
    folder = bundle("mlp2", gradient="stale", plan_keys={"train": train})
    foreseeing(folder, "cut01")
    assert run_ranks(folder, 2, f"--out={folder / 'run'}", fails=True)[0] == 2
    message = json.loads((folder / "run" / "failure.json").read_text())["message"]
    assert "the weights of SGD without momentum cannot be predicted" in message
