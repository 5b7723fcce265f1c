"""Links between GPUs through main memory and gloo: `DNIC_TRANSPORT=gloo`.

For links that NCCL cannot use, or that are so slow that it does not matter, and for stages that
share a GPU. gloo does not take CUDA tensors, so every message lies in pinned memory on its way:
the sender's host waits until its device has written it, which the device finishes everything
before for, and the receiver's device fetches it on a lane of its own, into slots like those of
`dnic.runtime.nccl_links`. Receives are posted ahead, as gloo wants; no kernel waits for a peer.

Written against torch's documentation; it has not run on a GPU. Order and content are tested with
streams that only remember what they were given.
"""

from __future__ import annotations

from torch import Tensor

from dnic.runtime.links import Count, Link, Receiver, Sender, Slots
from dnic.runtime.plan import TensorSpec
from dnic.runtime.streams import CudaStreams, Event


class HostSender(Sender):
    """The sending end: copying into a slot waits until the message is there.

    Args:
        link: where to.
        slots: messages that may be under way before `send` waits.
        streams: of the device.
    """

    def __init__(self, link: Link, slots: int, streams: CudaStreams) -> None:
        super().__init__(link, slots)
        self._streams = streams

    def _allocate(self, nbytes: int) -> list[Tensor]:
        return self._streams.host_buffers(self._number, nbytes)


class HostReceiver(Receiver):
    """The receiving end.

    Args:
        link: where from.
        slots: receives that are posted ahead.
        streams: of the device.
    """

    def __init__(self, link: Link, slots: int, streams: CudaStreams) -> None:
        super().__init__(link, slots)
        self._streams = streams
        self._lane = streams.lane()
        self._fetched = Slots(slots, super()._allocate)
        self._fetched_at: list[Event] = [None] * slots
        self._released_at: list[Event] = []

    @property
    def slots_bytes(self) -> int:
        """Memory of the messages that may be under way, on the host and on the device."""
        return super().slots_bytes + self._fetched.nbytes

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Posts the first receives of a phase of `count.messages` messages of these tensors."""
        self._fetched.fit(specs, max(count.batch_size, count.last_batch_size))
        # Slots that were made just now may lie where earlier kernels still compute.
        self._released_at = [self._streams.mark()] * self._number
        super().begin(specs, count)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor will be overwritten when its slot is released."""
        return self._fetched.owns(tensor)

    def _allocate(self, nbytes: int) -> list[Tensor]:
        return self._streams.host_buffers(self._number, nbytes)

    def _arrived(self, message: int, batch_size: int) -> list[Tensor]:
        slot = message % self._number
        here, _ = self._slots.get(message, batch_size)
        there, views = self._fetched.get(message, batch_size)
        with self._lane.after(self._released_at[slot]):
            there.copy_(here, non_blocking=True)
            self._fetched_at[slot] = self._streams.mark()
        with self._streams.stall():
            self._streams.follow(self._fetched_at[slot])
        return views

    def _free(self) -> None:
        slot = (self._before + self._released - 1) % self._number
        self._released_at[slot] = self._streams.mark()
        # gloo writes there as soon as the next receive is posted; the lane waits for nothing long.
        self._fetched_at[slot].synchronize()
