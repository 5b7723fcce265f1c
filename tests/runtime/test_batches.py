"""Batches come in an order that follows from (seed, epoch), the same as DataLoader's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from dnic.errors import RuntimeFault
from dnic.runtime import batches as module
from dnic.runtime.batches import Batches, Header, Share, read_dataset, target_spec
from dnic.runtime.links import Count


class Rows(TensorDataset):
    """A subclass: taken sample by sample, by DataLoader itself."""


class Samples(Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def batches(dataset: Dataset[Any], size: int = 4, shuffle: bool = True, seed: int = 0) -> Batches:
    return Batches(dataset, size, shuffle=shuffle, seed=seed, loader_options={})


@given(st.integers(1, 40), st.integers(1, 50), st.booleans(), st.integers(0, 9), st.integers(1, 5))
def test_index_shortcut_equals_data_loader(
    samples: int, size: int, shuffle: bool, seed: int, epoch: int
) -> None:
    tensors = torch.arange(2.0 * samples).view(samples, 2), torch.arange(samples)
    fast = list(batches(TensorDataset(*tensors), size, shuffle, seed).epoch(epoch))
    slow = list(batches(Rows(*tensors), size, shuffle, seed).epoch(epoch))
    assert len(fast) == len(slow)
    for (one, target), (other, expected) in zip(fast, slow, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(target, expected)
    order = torch.cat([target for _, target in fast])
    assert sorted(order.tolist()) == list(range(samples))


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.booleans(),
    st.integers(1, 6),
    st.sampled_from([TensorDataset, Rows]),
)
def test_shares_make_up_the_batches(
    samples: int, size: int, shuffle: bool, ranks: int, kind: type[TensorDataset]
) -> None:
    data = batches(kind(torch.zeros(samples, 1), torch.arange(samples)), size, shuffle)
    whole = [target for _, target in data.epoch(2)]
    shares = [Share(rank, ranks) for rank in range(ranks)]
    parts = [[target for _, target in data.epoch(2, share)] for share in shares]
    for message, batch in enumerate(whole):
        sizes = [end - begin for begin, end in (share.bounds(len(batch)) for share in shares)]
        assert sum(sizes) == len(batch)
        assert max(sizes) - min(sizes) <= 1
        # Nobody is without a sample, though one too many may get no weight.
        assert [len(part[message]) for part in parts] == [max(size, 1) for size in sizes]
        counted = [part[message] for part, size in zip(parts, sizes, strict=True) if size]
        assert torch.equal(torch.cat(counted), batch)


@given(st.integers(1, 100), st.integers(1, 120), st.one_of(st.none(), st.integers(1, 30)))
def test_counts_are_exact(samples: int, size: int, most: int | None) -> None:
    data = batches(TensorDataset(torch.zeros(samples, 1), torch.zeros(samples)), size)
    count = data.count(most)
    sizes = [target.shape[0] for _, target in data.epoch(1)][:most]
    assert [count.size(message) for message in range(count.messages)] == sizes
    assert count.samples == sum(sizes)


def test_order_changes_with_seed_and_epoch() -> None:
    data = TensorDataset(torch.zeros(50, 1), torch.arange(50))

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([t for _, t in batches(data, seed=seed).epoch(epoch)]).tolist()

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_several_inputs_and_python_numbers() -> None:
    data = Samples(*(((torch.ones(2), torch.zeros(3)), i) for i in range(5)))
    inputs, target = next(batches(data).epoch(1))
    assert [list(part.shape) for part in inputs] == [[4, 2], [4, 3]]
    assert target.dtype == torch.int64


def test_batches_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `DataLoader`, where it is used and not told otherwise, and by the shortcut."""
    pinned: list[list[int]] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(list(tensor.shape))
        return tensor.clone()

    asked: list[bool] = []

    class Loader(DataLoader[Any]):
        def __init__(self, *args: Any, pin_memory: bool, **options: Any) -> None:
            asked.append(pin_memory)
            super().__init__(*args, **options)

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(module, "DataLoader", Loader)
    dataset = TensorDataset(torch.randn(6, 3), torch.arange(6))
    for pins in (False, True):
        for options in ({}, {"num_workers": 0}, {"pin_memory": False}):
            known = {"shuffle": True, "seed": 1, "loader_options": options}
            batches = Batches(dataset, 4, pinned=pins, **known)
            assert [len(target) for _, target in batches.epoch(1)] == [4, 2]
    assert pinned == [[4, 3], [4], [2, 3], [2]]
    assert asked == [False, False, True, False]


def test_loader_options_reach_data_loader() -> None:
    def collate(samples: list[Any]) -> Any:
        return torch.stack([x for x, _ in samples]) + 1, torch.tensor([y for _, y in samples])

    data = Batches(
        TensorDataset(torch.zeros(4, 2), torch.arange(4)),
        2,
        shuffle=False,
        seed=0,
        loader_options={"collate_fn": collate},
    )
    assert next(data.epoch(1))[0][0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        (Samples(), "is empty"),
        (Stream(), "has no length"),
    ],
)
def test_data_sets_that_do_not_do(dataset: Dataset[Any], problem: str) -> None:
    with pytest.raises(RuntimeFault, match=problem):
        batches(dataset)


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (torch.ones(2), "not a pair"),
        ((torch.ones(2), 1, 2), "not a pair"),
        ((torch.ones(2), "label"), "not a tensor"),
        ((torch.ones(2), {"a": 1}), "not a tensor"),
    ],
)
def test_samples_that_do_not_do(sample: Any, problem: str) -> None:
    with pytest.raises(RuntimeFault, match=problem):
        next(batches(Samples(sample, sample)).epoch(1))


def test_a_factory_that_returns_no_data_set() -> None:
    def train_data() -> Any:
        return 3

    with pytest.raises(RuntimeFault, match=r"train_data\(\) returned int"):
        read_dataset(train_data)


def test_header_survives_the_board() -> None:
    header = Header(Count(3, 8, 5), target_spec(torch.zeros(8, 4, dtype=torch.int32)), 7, True)
    assert Header.from_json(header.to_json()) == header
    assert header.target.resolve(5) == (5, 4)
