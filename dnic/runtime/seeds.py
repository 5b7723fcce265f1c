"""Every random number of a run follows from its seed.

Each stage draws from generators of its own, seeded from (seed, stage), and each epoch's order from
(seed, epoch): dropout and shuffling are the same whatever the other stages do. Data sets may draw
from `random` and numpy, so these are seeded and restored beside torch's own: on a GPU that of the
process's device. Its state lies on the host, so reading it waits for no kernel. CUDA kernels that
are not deterministic are out of reach.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from numpy.random import SeedSequence

_STAGE_STREAM = 1
_EPOCH_STREAM = 2
_HEAD_STREAM = 3
_PART_STREAM = 4
_UPDATE_STREAM = 5
_DRAW_STREAM = 6


def seed_everything(seed: int) -> None:
    """Seeds torch (every device), numpy and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def stage_seed(seed: int, stage: int) -> int:
    """The seed of one stage's own random numbers."""
    return _mixed(seed, _STAGE_STREAM, stage)


def replica_seed(seed: int, stage: int, replica: int) -> int:
    """The seed of a further replica's own random numbers; the first one has its stage's."""
    return _mixed(seed, _STAGE_STREAM, stage, replica)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of the order of the samples in one epoch."""
    return _mixed(seed, _EPOCH_STREAM, epoch)


def head_seed(seed: int, source: int, to: int, tensor: int) -> int:
    """The seed of the initial parameters of one tensor's head at one interface.

    Heads do not draw from their stage's random numbers, so that a stage's dropout is the same
    with heads and without.
    """
    return _mixed(seed, _HEAD_STREAM, source, to, tensor)


def update_draw(seed: int, stage: int, step: int) -> float:
    """A number from 0 to 1, below 1, that decides whether a stage updates in a step."""
    return _mixed(seed, _UPDATE_STREAM, stage, step) / 2**63


def part_seed(seed: int, part: int) -> int:
    """The seed of one part of something that has a seed of its own."""
    return _mixed(seed, _PART_STREAM, part)


def draw_seed(seed: int, *place: int) -> int:
    """The seed of what is drawn at one place of something that has a seed of its own."""
    return _mixed(seed, _DRAW_STREAM, *place)


def random_state() -> dict[str, Any]:
    """The state of every generator that `seed_everything` seeds."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(np.asarray(keys)), position, has_gauss, gauss),
        "python": random.getstate(),
    }
    if _cuda_runs():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts every generator back into a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, gauss))
    random.setstate(state["python"])
    if "cuda" in state and _cuda_runs():
        torch.cuda.set_rng_state(state["cuda"])


def _cuda_runs() -> bool:
    """Whether this process uses CUDA; a run on the CPU shall not start it by asking."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _mixed(seed: int, *stream: int) -> int:
    state = SeedSequence([seed % 2**64, *stream]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
