"""Links between GPUs through NCCL.

The same as `dnic.runtime.links`, message for message, but no call waits for a transfer: on CUDA
`Work.wait` makes the current stream wait, and the host goes on. What must not happen is ordered on
the device. Numbers in the code point here; [torch] marks what ProcessGroupNCCL does by itself.

    1  A message is written into a slot after the slot's earlier message has left: the computing
       stream waits for that send.
    2  [torch] It leaves after it is written: `isend` makes NCCL's stream wait for the current one.
    3  A message arrives in a slot after all reads of the slot's earlier message: the receive is
       posted on a lane that waits for the moment at which the slot was released.
    4  A message is read after it has arrived: the computing stream waits for the receive.

Writing (1) is left to the computing stream. A copy within a device takes microseconds; on a stream
of its own the computing one would have to wait for it before anything changes or frees the tensor.

When a receive is posted matters, because NCCL's kernels wait on the device, and whatever waits for
the whole device (freeing memory, say) waits for them. Posted ahead, as with gloo, a receive would
hold it for ever whose message answers to what this rank's host has yet to send. Posted only when
the stage asks, two ranks that wait for their devices at once could each hold the other's sends. So
a gradient's receive is posted as soon as all that it answers to has left (`expect`), any other when
the stage asks. As the host runs ahead of its device, and (3) waits for nothing else, messages still
arrive while those before are worked on. Both ends count alike and every direction has a
communicator of its own, so sends and receives meet in one order.

So one rank may wait for its device at any time. All may at once where batches are not cut: that is
what playing runs has shown, without shared parameters, and no proof. In the middle of a step with
microbatches two that do it together may wait until `--timeout`. NVIDIA warns of that for all use of
several communicators; `DNIC_TRANSPORT=gloo` has no such kernels.

A message's time limit counts from when it is posted, and NCCL's watchdog, which finds out, ends the
process by SIGABRT: no `LinkFault` tells of it. Slots are never freed while a message is under way,
so `isend` and `irecv` need not keep them alive.

Written against torch's documentation and ProcessGroupNCCL; it has not run on a GPU. The order of
operations is tested with streams and events that only remember it, and played on pretended devices
whose ranks wait wherever they can.
"""

from __future__ import annotations

from dnic.runtime.links import Count, Link, Receiver, Sender, wait
from dnic.runtime.plan import TensorSpec
from dnic.runtime.streams import CudaStreams, Event


class NcclSender(Sender):
    """The sending end.

    Args:
        link: where to.
        slots: messages that may be under way before the computing stream waits.
        streams: of the device.
    """

    def __init__(self, link: Link, slots: int, streams: CudaStreams) -> None:
        super().__init__(link, slots)
        self._streams = streams

    def _await(self, message: int) -> None:
        slot = message % self._number
        work = self._works[slot]
        if work is not None:
            with self._streams.stall():
                wait(work, self._link)  # 1
            self._works[slot] = None


class NcclReceiver(Receiver):
    """The receiving end.

    Args:
        link: where from.
        slots: messages that may have arrived and not been released.
        streams: of the device.
    """

    def __init__(self, link: Link, slots: int, streams: CudaStreams) -> None:
        super().__init__(link, slots)
        self._streams = streams
        self._lane = streams.lane()
        self._released_at: list[Event] = []
        self._asked = 0  # receives of this phase that are posted in truth

    def begin(self, specs: tuple[TensorSpec, ...], count: Count) -> None:
        """Prepares a phase of `count.messages` messages of these tensors."""
        super().begin(specs, count)
        # Slots that were made just now may lie where earlier kernels still compute.
        self._released_at = [self._streams.mark()] * self._number
        self._asked = 0

    def expect(self, messages: int) -> None:
        """Posts their receives, as far as there are slots."""
        while self._asked < min(messages, self._posted):
            self._ask()

    def _ask(self) -> None:
        message = self._before + self._asked
        buffer, _ = self._slots.get(message, self._count.size(self._asked))
        with self._lane.after(self._released_at[message % self._number]):  # 3
            super()._expect(message, buffer)
        self._asked += 1

    def _expect(self, message: int, buffer: object) -> None:
        """Nothing: a slot is free, which is no reason to post its receive."""

    def _await(self, message: int) -> None:
        if self._asked == self._taken:
            self._ask()
        slot = message % self._number
        work = self._works[slot]
        if work is not None:
            with self._streams.stall():
                wait(work, self._link)  # 4
            self._works[slot] = None

    def _free(self) -> None:
        slot = (self._before + self._released - 1) % self._number
        self._released_at[slot] = self._streams.mark()  # 3
