"""What the plan asks of a forward is put around it: in the stages it names, in this order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.runtime.bundle import load_bundle
from dnic.runtime.forward import prepare_model, prepare_stage
from dnic.runtime.plan import Plan

Make = Callable[..., tuple[Plan, list[nn.Module], nn.Module]]
CPU = torch.device("cpu")


@pytest.fixture
def made(bundle: Callable[..., Path], load_module: Callable[[Path], Any]) -> Make:
    """The plan, the stages and the model of a bundle of three stages."""

    def make(**keys: Any) -> tuple[Plan, list[nn.Module], nn.Module]:
        optimizer = {"name": "SGD", "options": {"lr": 0.1}}
        train = {"batch_size": 16, "epochs": 1, "optimizer": optimizer, **keys}
        folder = bundle("mlp3", plan_keys={"train": train})
        model = load_module(folder / "model.py").build_model()
        stages = load_module(folder / "stages.py").STAGES
        return load_bundle(folder).plan, [stage(model) for stage in stages], model

    return make


def runs(module: nn.Module, layers: list[nn.Module], size: int) -> list[int]:
    """How often each layer runs in one step of a module."""
    seen = [0] * len(layers)

    def count(place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seen[place] += 1

        return hook

    handles = [layer.register_forward_pre_hook(count(i)) for i, layer in enumerate(layers)]
    module(torch.randn(4, size)).float().sum().backward()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("recompute", "stages", "whole"),
    [
        (False, [1, 1, 1], [1, 1, 1]),
        (True, [2, 2, 2], [2, 2, 2]),
        ([0, 2], [2, 1, 2], [1, 1, 1]),
        ([], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_the_named_stages_run_twice(
    made: Make, recompute: Any, stages: list[int], whole: list[int]
) -> None:
    plan, parts, model = made(recompute=recompute)
    for index, part in enumerate(parts):
        prepare_stage(part, plan, index, CPU)
    layers = list(model.layers)
    found = [
        runs(part, layers[i : i + 1], size)[0]
        for i, (part, size) in enumerate(zip(parts, (12, 32, 32), strict=True))
    ]
    assert found == stages
    prepare_model(model, plan, CPU)
    assert runs(model, layers, 12) == whole


def test_bf16_inside_and_the_planned_dtype_outside(made: Make) -> None:
    plan, parts, model = made(precision="bf16")
    inside: list[torch.dtype] = []

    def look(module: nn.Module, given: Any, output: Tensor) -> None:
        inside.append(output.dtype)

    for index, part in enumerate(parts):
        prepare_stage(part, plan, index, CPU)
        model.layers[index].register_forward_hook(look)
    first = parts[0](torch.randn(4, 12))
    last = parts[2](parts[1](first))
    assert inside == [torch.bfloat16] * 3
    assert (first.dtype, last.dtype) == (torch.float32, torch.bfloat16)
    last.float().sum().backward()
    assert {p.grad.dtype for p in parts[0].parameters() if p.grad is not None} == {torch.float32}
    prepare_model(model, plan, CPU)
    assert model(torch.randn(4, 12)).dtype == torch.bfloat16


def test_compiled_first_then_computed_twice_in_one_piece(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def record(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            compiled.append(torch.is_autocast_enabled("cpu"))
            return forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", record)
    plan, parts, _ = made(compile=True, recompute=True, precision="bf16")
    prepare_stage(parts[0], plan, 0, CPU)
    parts[0](torch.randn(4, 12)).sum().backward()
    assert compiled == [True, True]
