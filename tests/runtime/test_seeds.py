"""The state of every generator is kept, a GPU's where one is used and nowhere else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dnic.runtime.seeds import random_state, restore_random_state, seed_everything


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_goes_on_where_it_was() -> None:
    seed_everything(5)
    draw()
    state = random_state()
    assert "cuda" not in state
    drawn = draw()
    assert draw() != drawn
    restore_random_state(state)
    assert draw() == drawn


def test_the_generator_of_a_gpu_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch.tensor([7], dtype=torch.uint8)
    restored: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: kept)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    state = random_state()
    restore_random_state(state)
    assert restored == [kept]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    restore_random_state(state)  # a checkpoint of a GPU, on a CPU
    assert restored == [kept]


def test_a_gpu_that_is_not_used_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank of a run on the CPU would take memory of it."""

    def start() -> torch.Tensor:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", start)
    random_state()
