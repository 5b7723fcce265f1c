"""Ranks connect their GPUs in one order, so that none waits for one that waits for it."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed as dist

from dnic.runtime import groups as module
from dnic.runtime.place import Place
from dnic.runtime.worker import Worker

GPU = torch.device("cuda", 0)
# (who sends, who receives), or a group that two ranks make: what both must come to.
Meeting = tuple[str, int, int]


class Fake:
    """What `groups` uses of torch, as one rank sees it; notes where that rank waits for another."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.meetings: list[Meeting] = []
        self.groups: list[tuple[list[int], dict[str, Any]]] = []

    def new_group(self, ranks: list[int], **options: Any) -> Any:
        self.groups.append((ranks, options))
        if self.rank in ranks:
            self.meetings.append(("group", min(ranks), max(ranks)))
        return tuple(ranks)

    def send(self, tensor: object, to: int, *, group: tuple[int, int]) -> None:
        assert group == (self.rank, to)
        self.meetings.append(("byte", self.rank, to))

    def recv(self, tensor: object, source: int, *, group: tuple[int, int]) -> None:
        assert group == (source, self.rank)
        self.meetings.append(("byte", source, self.rank))


@pytest.fixture(autouse=True)
def torch_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNIC_TRANSPORT", raising=False)
    monkeypatch.setattr(module.torch, "zeros", lambda *size, **options: None)
    stream = type("Stream", (), {"synchronize": lambda self: None})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream())
    monkeypatch.setattr(module, "_options", lambda: None)


def run(
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    pairs: list[tuple[int, int]],
    device: torch.device,
    replicas: int = 1,
) -> Fake:
    fake = Fake(rank)
    for name in ("new_group", "send", "recv"):
        monkeypatch.setattr(dist, name, getattr(fake, name))
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    for source, to in pairs:
        module.groups(source, to, device, 60.0, Place(rank, replicas=replicas))
    return fake


def all_meet(orders: list[list[Meeting]]) -> bool:
    """Whether every rank gets through, each waiting at each meeting for the other one."""
    left = [deque(order) for order in orders]
    while any(left):
        heads = [order[0] if order else None for order in left]
        met = next(
            (head for head in heads if head and heads[head[1]] == heads[head[2]] == head), None
        )
        if met is None:
            return False
        for rank in met[1:]:
            left[rank].popleft()
    return True


def test_no_rank_waits_for_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (0, 3)]
    ranks = [run(monkeypatch, rank, pairs, GPU) for rank in range(4)]
    assert all_meet([rank.meetings for rank in ranks])
    # Every pair has a group and a byte each way, and all ranks make all groups in one order.
    assert len(ranks[0].meetings) == 3 * 2 * 2
    assert all(rank.groups == ranks[0].groups for rank in ranks)
    turned = [list(reversed(ranks[0].meetings)), *(rank.meetings for rank in ranks[1:])]
    assert not all_meet(turned)


def test_every_column_of_replicas_has_groups_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(0, 1), (1, 2)]
    ranks = [run(monkeypatch, rank, pairs, GPU, replicas=2) for rank in range(6)]
    assert all_meet([rank.meetings for rank in ranks])
    assert all(rank.groups == ranks[0].groups for rank in ranks)
    made = [there for there, _ in ranks[0].groups]
    assert made == [[0, 2], [2, 0], [1, 3], [3, 1], [2, 4], [4, 2], [3, 5], [5, 3]]
    own = module.groups(0, 1, GPU, 60.0, Place(3, replicas=2))
    assert own == ((1, 3), (3, 1))


def test_what_a_group_is_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    ((there, options), (back, _)) = run(monkeypatch, 2, [(0, 1)], GPU).groups
    assert (there, back) == ([0, 1], [1, 0])
    assert options["timeout"] == timedelta(seconds=60)
    assert options["backend"] == "nccl" and options["device_id"] == GPU


def test_gloo_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(monkeypatch, 0, [(0, 1)], torch.device("cpu")).groups
    monkeypatch.setenv("DNIC_TRANSPORT", "gloo")
    assert not run(monkeypatch, 0, [(0, 1)], GPU).groups
    module.warm_up(torch.device("cpu"))


@pytest.mark.parametrize(
    ("mode", "clip_norm", "joined"),
    [
        ("decoupled", None, False),
        ("decoupled", 1.0, False),
        ("exact", None, False),
        ("exact", 1.0, True),
        ("gpipe", None, True),
        ("ddp", None, True),
    ],
)
def test_who_needs_all_ranks_connected(
    monkeypatch: pytest.MonkeyPatch, mode: str, clip_norm: float | None, joined: bool
) -> None:
    interface = SimpleNamespace(gradient="synthetic", differentiable=True)
    plan = SimpleNamespace(train=SimpleNamespace(clip_norm=clip_norm), interfaces=[interface])
    worker: Any = SimpleNamespace(
        options=SimpleNamespace(mode=mode), bundle=SimpleNamespace(plan=plan), staged=mode != "ddp"
    )
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert Worker._joins_all(worker) is joined
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert not Worker._joins_all(worker)
