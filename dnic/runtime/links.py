"""Tensors from one rank to another, one message per step, without waiting where possible.

`torch.distributed` offers `isend` and `irecv` of single tensors. What it leaves open is here:
several tensors in one message, buffers that outlive the call (`isend` does not copy), receives
that are posted before the sender is ready (data moves only then) and an exact count of messages,
so that none is left over when a phase ends (a dropped receive keeps gloo's thread spinning).

A `Sender` and a `Receiver` are the two ends of one direction of one edge. Message `m` uses slot
`m % slots` on both sides; the sender waits for a slot's earlier message before it writes the slot
again, which bounds how far it can run ahead. With NCCL every direction of every edge needs a
process group of its own, because receives posted in one group run one after the other. Tensors of
other layouts arrive contiguous. Messages are never compressed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from dnic.errors import RuntimeFault
from dnic.runtime.failure import LinkFault
from dnic.runtime.plan import TensorSpec

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Link:
    """One direction between two ranks.

    Attributes:
        peer: the other rank.
        tag: unique among the links of a run (gloo; NCCL knows no tags).
        group: the process group of this link, None for the default group.
        device: where the tensors live.
    """

    peer: int
    tag: int
    group: dist.ProcessGroup | None
    device: torch.device


@dataclass(frozen=True)
class Count:
    """The messages of one phase: how many, and the batch size of each (the last may be smaller)."""

    messages: int
    batch_size: int
    last_batch_size: int

    def size(self, message: int) -> int:
        """Batch size of one message."""
        return self.last_batch_size if message == self.messages - 1 else self.batch_size

    @property
    def samples(self) -> int:
        """Samples in all messages."""
        return (self.messages - 1) * self.batch_size + self.last_batch_size if self.messages else 0


class Layout:
    """Where each tensor of a message lies in its buffer, at one batch size."""

    def __init__(self, specs: Sequence[TensorSpec], batch_size: int) -> None:
        self._fields: list[tuple[torch.dtype, tuple[int, ...], int, int]] = []
        offset = 0
        for spec in specs:
            dtype = dtype_named(spec.dtype)
            shape = spec.resolve(batch_size)
            nbytes = torch.Size(shape).numel() * dtype.itemsize
            self._fields.append((dtype, shape, offset, nbytes))
            offset += -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.nbytes = max(offset, _ALIGNMENT_BYTES)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors of a message as views of its buffer of bytes."""
        return [
            buffer[offset : offset + nbytes].view(dtype).view(shape)
            for dtype, shape, offset, nbytes in self._fields
        ]


class _Slots:
    """Buffers for messages, and their tensors at the two batch sizes of a phase."""

    def __init__(self, number: int, device: torch.device) -> None:
        self._number = number
        self._device = device
        self._buffers: list[Tensor] = []
        self._known: dict[tuple[int, int], tuple[Tensor, list[Tensor]]] = {}
        self._specs: tuple[TensorSpec, ...] = ()

    def fit(self, specs: tuple[TensorSpec, ...], batch_size: int) -> None:
        """Makes the buffers large enough; keeps them when they already are."""
        nbytes = Layout(specs, batch_size).nbytes
        if not self._buffers or self._buffers[0].numel() < nbytes:
            self._buffers = [
                torch.empty(nbytes, dtype=torch.uint8, device=self._device)
                for _ in range(self._number)
            ]
            self._known.clear()
        if specs != self._specs:
            self._known.clear()
            self._specs = specs

    def get(self, message: int, batch_size: int) -> tuple[Tensor, list[Tensor]]:
        """The bytes of a message and its tensors."""
        slot = message % self._number
        known = self._known.get((slot, batch_size))
        if known is None:
            layout = Layout(self._specs, batch_size)
            bytes_ = self._buffers[slot][: layout.nbytes]
            known = self._known[slot, batch_size] = (bytes_, layout.views(bytes_))
        return known

    @property
    def nbytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.numel() for buffer in self._buffers)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is a view of one of the buffers."""
        pointer = tensor.untyped_storage().data_ptr()
        return any(buffer.untyped_storage().data_ptr() == pointer for buffer in self._buffers)


class Sender:
    """The sending end of a link.

    Args:
        link: where to.
        slots: messages that may be under way before `send` waits.
    """

    def __init__(self, link: Link, slots: int) -> None:
        self._link = link
        self._slots = _Slots(slots, link.device)
        self._number = slots
        self._works: list[dist.Work | None] = [None] * slots
        self._specs: tuple[TensorSpec, ...] = ()
        self._count = Count(0, 0, 0)
        self._sent = 0
        self.waited_s = 0.0
        self.sent_bytes = 0

    @property
    def slots_bytes(self) -> int:
        """Memory of the messages that may be under way."""
        return self._slots.nbytes

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Prepares a phase of `count.messages` messages of these tensors."""
        self._slots.fit(specs, max(count.batch_size, count.last_batch_size))
        self._specs, self._count, self._sent = specs, count, 0

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Starts sending copies of the tensors, in the order of the specs.

        Raises:
            RuntimeFault: a tensor has another shape or dtype than planned.
            LinkFault: the peer is gone.
        """
        slot = self._sent % self._number
        self._await(slot)
        buffer, views = self._slots.get(self._sent, self._count.size(self._sent))
        for spec, view, tensor in zip(self._specs, views, tensors, strict=True):
            if tensor.shape != view.shape or tensor.dtype != view.dtype:
                raise _unexpected(spec, view, tensor)
            view.copy_(tensor.detach())
        link = self._link
        try:
            self._works[slot] = dist.isend(buffer, link.peer, group=link.group, tag=link.tag)
        except RuntimeError as error:
            raise LinkFault(f"stage {link.peer}", str(error)) from error
        self._sent += 1
        self.sent_bytes += buffer.numel()

    def finish(self) -> None:
        """Waits until every message has left."""
        for slot in range(self._number):
            self._await(slot)

    def _await(self, slot: int) -> None:
        work = self._works[slot]
        if work is not None:
            self.waited_s += wait(work, self._link)
            self._works[slot] = None


class Receiver:
    """The receiving end of a link.

    Args:
        link: where from.
        slots: receives that are posted ahead; the tensors of a message stay valid until it is
            released.
    """

    def __init__(self, link: Link, slots: int) -> None:
        self._link = link
        self._slots = _Slots(slots, link.device)
        self._number = slots
        self._works: list[dist.Work | None] = [None] * slots
        self._count = Count(0, 0, 0)
        self._posted = 0
        self._taken = 0
        self._released = 0
        self.waited_s = 0.0

    @property
    def slots_bytes(self) -> int:
        """Memory of the messages that may be under way."""
        return self._slots.nbytes

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Posts the first receives of a phase of `count.messages` messages of these tensors."""
        self._slots.fit(specs, max(count.batch_size, count.last_batch_size))
        self._count, self._posted, self._taken, self._released = count, 0, 0, 0
        for _ in range(min(self._number, count.messages)):
            self._post()

    def receive(self) -> list[Tensor]:
        """Waits for the next message; its tensors are views of a slot.

        Raises:
            LinkFault: the peer is gone or did not send in time.
        """
        slot = self._taken % self._number
        work = self._works[slot]
        if work is None:
            raise RuntimeError("more messages are taken than the phase has, or none was released")
        self.waited_s += wait(work, self._link)
        self._works[slot] = None
        _, views = self._slots.get(self._taken, self._count.size(self._taken))
        self._taken += 1
        return views

    def release(self) -> None:
        """Gives the oldest taken message's slot to the next receive."""
        if self._released == self._taken:
            raise RuntimeError("a message is released that was not taken")
        self._released += 1
        if self._posted < self._count.messages:
            self._post()

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor will be overwritten when its slot is released."""
        return self._slots.owns(tensor)

    def _post(self) -> None:
        buffer, _ = self._slots.get(self._posted, self._count.size(self._posted))
        link = self._link
        try:
            work = dist.irecv(buffer, link.peer, group=link.group, tag=link.tag)
        except RuntimeError as error:
            raise LinkFault(f"stage {link.peer}", str(error)) from error
        self._works[self._posted % self._number] = work
        self._posted += 1


def wait(work: dist.Work, link: Link) -> float:
    """Waits for a transfer; returns the time it took, in seconds.

    Raises:
        LinkFault: the peer is gone or did not answer in time.
    """
    started = time.perf_counter()
    try:
        work.wait()
    except RuntimeError as error:
        raise LinkFault(f"stage {link.peer}", str(error)) from error
    return time.perf_counter() - started


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of that name, such as `float32`.

    Raises:
        RuntimeFault: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise RuntimeFault(
            f"{name!r} is not a dtype", where="plan.yaml", expected="float32, int64, ..."
        )
    return dtype


def _unexpected(spec: TensorSpec, planned: Tensor, actual: Tensor) -> RuntimeFault:
    def text(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    return RuntimeFault(
        f"the tensor {spec.name} is {text(actual)}",
        where="stages.py",
        expected=f"{text(planned)}, as plan.yaml says",
        hint="every sample must have the shape of the example inputs",
    )
