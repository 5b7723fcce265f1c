"""Tensors from one rank to another, one message per step, without waiting where possible.

`torch.distributed` offers `isend` and `irecv` of single tensors. What it leaves open is here:
several tensors in one message, buffers that outlive the call (`isend` does not copy), receives
that are posted before the sender is ready (data moves only then) and an exact count of messages,
so that none is left over when a phase ends (a dropped receive keeps gloo's thread spinning).

A `Sender` and a `Receiver` are the two ends of one direction of one edge. Message `m` uses slot
`m % slots` on both sides; the sender waits for a slot's earlier message before it writes the slot
again, which bounds how far it can run ahead. This is gloo between main memories; what differs in
shared memory, with NCCL and with gloo between GPUs is in `memory_links`, `nccl_links` and
`host_links`. Tensors of other layouts arrive contiguous. A tensor whose spec has a `message_dtype`
is converted to it by the copy into the slot, which is made anyway, and converted back where it
arrives; nothing else is compressed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from dnic.errors import RuntimeFault
from dnic.runtime.failure import LinkFault
from dnic.runtime.microbatches import microbatches
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
        replicas: processes of each stage.
    """

    peer: int
    tag: int
    group: dist.ProcessGroup | None
    device: torch.device
    replicas: int = 1

    @property
    def stage(self) -> int:
        """The stage at the other end, for messages."""
        return self.peer // self.replicas


@dataclass(frozen=True)
class Count:
    """The messages of one phase: how many, and the samples in each.

    Attributes:
        messages: one for each batch, or for each microbatch.
        batch_size: samples in all but the last.
        last_batch_size: samples in each of the last.
        last: how many those are: one batch, or its microbatches.
    """

    messages: int
    batch_size: int
    last_batch_size: int
    last: int = 1

    def size(self, message: int) -> int:
        """Samples in one message."""
        return self.last_batch_size if message >= self.messages - self.last else self.batch_size

    def cut(self, most: int) -> Count:
        """The same batches in microbatches, at most so many each."""
        if not self.messages:
            return self
        each, last = (microbatches(size, most) for size in (self.batch_size, self.last_batch_size))
        messages = (self.messages - 1) * each + last
        return Count(messages, self.batch_size // each, self.last_batch_size // last, last)

    @property
    def samples(self) -> int:
        """Samples in all messages."""
        if not self.messages:
            return 0
        before = self.messages - self.last
        return before * self.batch_size + self.last * self.last_batch_size


class Layout:
    """Where each tensor of a message lies in its buffer, at one batch size."""

    def __init__(self, specs: Sequence[TensorSpec], batch_size: int) -> None:
        self._fields: list[tuple[torch.dtype, tuple[int, ...], int, int]] = []
        offset = 0
        for spec in specs:
            dtype = dtype_named(spec.message_dtype or spec.dtype)
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


class Slots:
    """Buffers for messages, and their tensors at the two batch sizes of a phase.

    Args:
        number: of buffers.
        allocate: makes them anew, of at least so many bytes each.
    """

    def __init__(self, number: int, allocate: Callable[[int], list[Tensor]]) -> None:
        self._number = number
        self._allocate = allocate
        self._buffers: list[Tensor] = []
        self._pointers: set[int] = set()
        self._known: dict[tuple[int, int], tuple[Tensor, list[Tensor]]] = {}
        self._specs: tuple[TensorSpec, ...] = ()

    def fit(self, specs: tuple[TensorSpec, ...], batch_size: int) -> None:
        """Makes the buffers large enough; keeps them when they already are."""
        nbytes = Layout(specs, batch_size).nbytes
        if not self._buffers or self._buffers[0].numel() < nbytes:
            self._buffers = self._allocate(nbytes)
            self._pointers = {buffer.untyped_storage().data_ptr() for buffer in self._buffers}
            self._known.clear()
        if specs != self._specs:
            self._known.clear()
            self._specs = specs

    def get(self, message: int, batch_size: int) -> tuple[Tensor, list[Tensor]]:
        """The bytes of a message, counted over all phases, and its tensors."""
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
        return tensor.untyped_storage().data_ptr() in self._pointers


class _End:
    """What both ends of a link have: slots, and the transfers that are under way in them."""

    def __init__(self, link: Link, slots: int) -> None:
        self._link = link
        self._slots = Slots(slots, self._allocate)
        self._number = slots
        self._works: list[dist.Work | None] = [None] * slots
        self.waited_s = 0.0

    @property
    def slots_bytes(self) -> int:
        """Memory of the messages that may be under way."""
        return self._slots.nbytes

    def _allocate(self, nbytes: int) -> list[Tensor]:
        """The buffers of all slots."""
        device = self._link.device
        return [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(self._number)]

    def _await(self, message: int) -> None:
        """Waits until the transfer that uses a message's slot is over."""
        slot = message % self._number
        work = self._works[slot]
        if work is not None:
            self.waited_s += wait(work, self._link)
            self._works[slot] = None


class Sender(_End):
    """The sending end of a link.

    Args:
        link: where to.
        slots: messages that may be under way before `send` waits.
    """

    def __init__(self, link: Link, slots: int) -> None:
        super().__init__(link, slots)
        self._dtypes: list[torch.dtype] = []
        self._specs: tuple[TensorSpec, ...] = ()
        self._count = Count(0, 0, 0)
        self._before = self._sent = 0  # messages of earlier phases, and of this one
        self.sent_bytes = 0

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Prepares a phase of `count.messages` messages of these tensors."""
        self._before, self._sent = self._before + self._sent, 0
        if count.messages:
            self._slots.fit(specs, max(count.batch_size, count.last_batch_size))
        self._specs, self._count = specs, count
        self._dtypes = [dtype_named(spec.dtype) for spec in specs]

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Starts sending copies of the tensors, in the order of the specs.

        Raises:
            RuntimeFault: a tensor has another shape or dtype than planned.
            LinkFault: the peer is gone.
        """
        message = self._before + self._sent
        self._await(message)
        buffer, views = self._slots.get(message, self._count.size(self._sent))
        for place, (view, tensor) in enumerate(zip(views, tensors, strict=True)):
            if tensor.shape != view.shape or tensor.dtype != self._dtypes[place]:
                raise _unexpected(self._specs[place], view, tensor)
            view.copy_(tensor.detach())
        self._leave(message, buffer)
        self._sent += 1
        self.sent_bytes += buffer.numel()

    def finish(self) -> None:
        """Waits until every message has left."""
        for slot in range(self._number):
            self._await(slot)

    def _leave(self, message: int, buffer: Tensor) -> None:
        """Lets a message go that lies in its slot."""
        link = self._link
        try:
            work = dist.isend(buffer, link.peer, group=link.group, tag=link.tag)
        except RuntimeError as error:
            raise LinkFault(f"stage {link.stage}", str(error)) from error
        self._works[message % self._number] = work


class Receiver(_End):
    """The receiving end of a link.

    Args:
        link: where from.
        slots: receives that are posted ahead; the tensors of a message stay valid until it is
            released.
    """

    def __init__(self, link: Link, slots: int) -> None:
        super().__init__(link, slots)
        self._count = Count(0, 0, 0)
        self._cast: list[tuple[int, torch.dtype]] = []  # what arrives in another dtype
        self._before = 0  # messages of earlier phases
        self._posted = 0
        self._taken = 0
        self._released = 0

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Posts the first receives of a phase of `count.messages` messages of these tensors."""
        self._before += self._taken
        if count.messages:
            self._slots.fit(specs, max(count.batch_size, count.last_batch_size))
        self._cast = [
            (place, dtype_named(spec.dtype))
            for place, spec in enumerate(specs)
            if spec.message_dtype
        ]
        self._count, self._posted, self._taken, self._released = count, 0, 0, 0
        for _ in range(min(self._number, count.messages)):
            self._post()

    def receive(self) -> list[Tensor]:
        """Waits for the next message; its tensors are views of a slot, or converted copies.

        Raises:
            LinkFault: the peer is gone or did not send in time.
        """
        if self._taken == self._posted:
            raise RuntimeError("more messages are taken than the phase has, or none was released")
        message = self._before + self._taken
        self._await(message)
        views = self._arrived(message, self._count.size(self._taken))
        self._taken += 1
        if self._cast:
            views = views.copy()
            for place, dtype in self._cast:
                views[place] = views[place].to(dtype)
        return views

    def expect(self, messages: int) -> None:
        """Told that what the first so many messages of this phase answer to has been sent."""

    def release(self) -> None:
        """Gives the oldest taken message's slot to the next receive."""
        if self._released == self._taken:
            raise RuntimeError("a message is released that was not taken")
        self._released += 1
        self._free()
        if self._posted < self._count.messages:
            self._post()

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor will be overwritten when its slot is released."""
        return self._slots.owns(tensor)

    def _post(self) -> None:
        """Makes the next message of this phase welcome."""
        message = self._before + self._posted
        self._expect(message, self._slots.get(message, self._count.size(self._posted))[0])
        self._posted += 1

    def _expect(self, message: int, buffer: Tensor) -> None:
        """Asks for a message, to be put into its slot."""
        link = self._link
        try:
            work = dist.irecv(buffer, link.peer, group=link.group, tag=link.tag)
        except RuntimeError as error:
            raise LinkFault(f"stage {link.stage}", str(error)) from error
        self._works[message % self._number] = work

    def _arrived(self, message: int, batch_size: int) -> list[Tensor]:
        """The tensors of a message that has come."""
        return self._slots.get(message, batch_size)[1]

    def _free(self) -> None:
        """Tells the sender of a slot that was released, where it needs telling."""


def wait(work: dist.Work, link: Link) -> float:
    """Waits for a transfer; returns the time it took, in seconds.

    Raises:
        LinkFault: the peer is gone or did not answer in time.
    """
    started = time.perf_counter()
    try:
        work.wait()
    except RuntimeError as error:
        raise LinkFault(f"stage {link.stage}", str(error)) from error
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
    def text(dtype: torch.dtype, tensor: Tensor) -> str:
        return f"{str(dtype).removeprefix('torch.')} {list(tensor.shape)}"

    return RuntimeFault(
        f"the tensor {spec.name} is {text(actual.dtype, actual)}",
        where="stages.py",
        expected=f"{text(dtype_named(spec.dtype), planned)}, as plan.yaml says",
        hint="every sample must have the shape of the example inputs",
    )
