"""Batches of (input, target) in an order that follows from (seed, epoch).

`torch.utils.data.DataLoader` does the work. This adds what the stages must know of each other's
data before an epoch starts (`Header`) and a shortcut: the samples of a `TensorDataset` are taken
by one index instead of one by one and stacked. Where a GPU takes them, batches lie in pinned
memory: it fetches them by itself while the host goes on, and torch keeps such memory from being
used again before. Data sets without a length are not supported, because the number of messages must
be known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from dnic.errors import RuntimeFault
from dnic.runtime.inputs import Batch, Inputs
from dnic.runtime.links import Count
from dnic.runtime.plan import SamplePlan, TensorSpec
from dnic.runtime.seeds import epoch_seed


@dataclass(frozen=True)
class Header:
    """What the first stage tells the others about an epoch, or an evaluation, before it starts.

    Attributes:
        count: batches and their sizes.
        target: the targets of one batch.
        batches: batches in a whole epoch; more than `count.messages` when the run ends early.
        live: whether anybody looks at live figures.
    """

    count: Count
    target: TensorSpec
    batches: int
    live: bool

    def to_json(self) -> dict[str, Any]:
        """For the board."""
        return {
            "count": [self.count.messages, self.count.batch_size, self.count.last_batch_size],
            "target": [list(self.target.shape), self.target.dtype],
            "batches": self.batches,
            "live": self.live,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Header:
        """The inverse of `to_json`."""
        shape, dtype = content["target"]
        return cls(
            count=Count(*content["count"]),
            target=TensorSpec("target", tuple(shape), dtype, False),
            batches=content["batches"],
            live=content["live"],
        )


@dataclass(frozen=True)
class Share:
    """One process's part of every batch: a contiguous slice, at most one sample apart in size.

    Attributes:
        rank: which part.
        ranks: how many there are.
    """

    rank: int
    ranks: int

    def bounds(self, batch_size: int) -> tuple[int, int]:
        """The slice of a batch, begin and end; empty where there are fewer samples than parts."""
        return (
            batch_size * self.rank // self.ranks,
            batch_size * (self.rank + 1) // self.ranks,
        )

    def indices(self, batch: Sequence[int]) -> list[int]:
        """Its part of a batch of indices; the first one alone where that would be empty.

        A process without a sample must still run a step, because the others wait for it; what it
        computes is given no weight.
        """
        begin, end = self.bounds(len(batch))
        return list(batch[begin:end]) or [batch[0]]


class _Shared:
    """A batch sampler that gives one process's part of every batch of another one."""

    def __init__(self, whole: BatchSampler, share: Share) -> None:
        self._whole = whole
        self._share = share

    def __iter__(self) -> Iterator[list[int]]:
        return (self._share.indices(indices) for indices in self._whole)

    def __len__(self) -> int:
        return len(self._whole)


class Batches:
    """A data set, in batches; held by the process of the first stage, or by all of `ddp`.

    Args:
        dataset: a torch data set of (input, target), several inputs as a tuple, list or mapping;
            or of mappings that hold both.
        batch_size: samples in a batch; the last one may be smaller.
        shuffle: whether every epoch has another order.
        seed: of that order.
        loader_options: further arguments of `DataLoader`, such as `num_workers`.
        samples: how a sample becomes what the model takes.
        pinned: whether batches are for a GPU; `pin_memory` among the loader's options wins.

    Raises:
        RuntimeFault: the data set is empty or has no length.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        loader_options: Mapping[str, Any],
        samples: SamplePlan = SamplePlan(),  # noqa: B008  # frozen
        pinned: bool = False,
    ) -> None:
        length = len(dataset) if isinstance(dataset, Sized) else None
        if length is None:
            raise RuntimeFault(
                f"the data set {type(dataset).__name__} has no length",
                where="model.py",
                expected="a torch Dataset with __len__ and __getitem__",
            )
        self.samples = length
        if length == 0:
            raise RuntimeFault(f"the data set {type(dataset).__name__} is empty", where="model.py")
        self._dataset: Dataset[Any] = dataset
        self._batch_size = min(batch_size, length)
        self._shuffle = shuffle
        self._seed = seed
        self._loader_options = loader_options
        self._inputs = Inputs(samples)
        self._pinned = pinned

    def __len__(self) -> int:
        return -(-self.samples // self._batch_size)

    def count(self, most: int | None = None) -> Count:
        """The batches of an epoch, or the first `most` of them."""
        last = self.samples - (len(self) - 1) * self._batch_size
        if most is None or most >= len(self):
            return Count(len(self), self._batch_size, last)
        return Count(most, self._batch_size, self._batch_size)

    def epoch(self, epoch: int, share: Share | None = None) -> Iterator[Batch]:
        """The batches of one epoch: what the model takes (a tuple or a mapping), and the target.

        Args:
            epoch: its number; the order follows from it and the seed.
            share: the part of every batch to read; None: all of it.

        Raises:
            RuntimeFault: a sample is neither a pair nor a mapping, or its target no tensor.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, epoch))
        for samples in self._collated(generator, share):
            yield self._inputs.split(samples)

    def _collated(self, generator: torch.Generator, share: Share | None) -> Iterator[Any]:
        # Exactly this class: a subclass may do more than index its tensors.
        dataset: Dataset[Any] = self._dataset
        if type(dataset) is TensorDataset and not self._loader_options:
            taken = self._indexed(dataset.tensors, generator, share)
            return map(_pinned, taken) if self._pinned else taken
        how: dict[str, Any] = {"batch_size": self._batch_size, "shuffle": self._shuffle}
        if share is not None:
            how = {"batch_sampler": _Shared(self._sampler(generator), share)}
        options = {"pin_memory": self._pinned} | dict(self._loader_options)
        loader: DataLoader[Any] = DataLoader(self._dataset, generator=generator, **how, **options)
        return iter(loader)

    def _sampler(self, generator: torch.Generator) -> BatchSampler:
        samples = range(self.samples)
        order = RandomSampler(samples, generator=generator) if self._shuffle else samples
        return BatchSampler(order, self._batch_size, drop_last=False)

    def _indexed(
        self, tensors: tuple[Tensor, ...], generator: torch.Generator, share: Share | None
    ) -> Iterator[tuple[Tensor, ...]]:
        # DataLoader draws a seed for its workers first; the same here gives the same order.
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        if self._shuffle:
            for indices in self._sampler(generator):
                index = torch.tensor(indices if share is None else share.indices(indices))
                yield tuple(tensor[index] for tensor in tensors)
        else:
            for start in range(0, self.samples, self._batch_size):
                part = range(self.samples)[start : start + self._batch_size]
                if share is not None:
                    begin, end = share.bounds(len(part))
                    part = part[begin:end] or part[:1]
                yield tuple(tensor[part.start : part.stop] for tensor in tensors)


def _pinned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies in memory that a GPU fetches from by itself."""
    return tuple(t.pin_memory() if t.device.type == "cpu" else t for t in tensors)


def target_spec(target: Tensor) -> TensorSpec:
    """The targets of a batch, whose first size follows the batch."""
    dtype = str(target.dtype).removeprefix("torch.")
    return TensorSpec("target", ("B", *target.shape[1:]), dtype, False)


def read_dataset(factory: Callable[[], Dataset[Any]]) -> Dataset[Any]:
    """Calls the model file's `train_data` or `test_data`.

    Raises:
        RuntimeFault: it did not return a data set.
    """
    dataset = factory()
    if not hasattr(dataset, "__getitem__"):
        raise RuntimeFault(
            f"{getattr(factory, '__name__', 'the callable')}() returned {type(dataset).__name__}",
            where="model.py",
            expected="a torch Dataset of (input, target)",
        )
    return dataset
