"""Links through shared memory, between ranks of one machine.

The same as `dnic.runtime.links`, message for message: the sender copies into a slot that both ends
see, the receiver uses it where it lies. gloo, on one machine, copies every message three times and
sends it through the kernel. Slots are counted once: the sender waits when all of them hold messages
that the receiver has not released.
"""

from __future__ import annotations

from torch import Tensor

from dnic.runtime.links import Link, Receiver, Sender
from dnic.runtime.ring import RELEASED, WRITTEN, Ring


class MemorySender(Sender):
    """The sending end.

    Args:
        link: where to.
        slots: of the ring.
        ring: what both ends see.
    """

    def __init__(self, link: Link, slots: int, ring: Ring) -> None:
        super().__init__(link, slots)
        self._ring = ring

    def finish(self) -> None:
        """Nothing: every message lies where its receiver sees it."""

    def _allocate(self, nbytes: int) -> list[Tensor]:
        # The receiver still reads what an earlier phase has put elsewhere.
        self.waited_s += self._ring.wait(RELEASED, self._before)
        return self._ring.resize(nbytes)

    def _await(self, message: int) -> None:
        self.waited_s += self._ring.wait(RELEASED, message - self._number + 1)

    def _leave(self, message: int, buffer: Tensor) -> None:
        self._ring.tell(WRITTEN, message + 1)


class MemoryReceiver(Receiver):
    """The receiving end.

    Args:
        link: where from.
        slots: of the ring.
        ring: what both ends see.
    """

    def __init__(self, link: Link, slots: int, ring: Ring) -> None:
        super().__init__(link, slots)
        self._ring = ring

    def _allocate(self, nbytes: int) -> list[Tensor]:
        return self._ring.resize(nbytes)

    def _expect(self, message: int, buffer: Tensor) -> None:
        """Nothing: a slot that is free is open to the sender."""

    def _await(self, message: int) -> None:
        self.waited_s += self._ring.wait(WRITTEN, message + 1)

    def _free(self) -> None:
        self._ring.tell(RELEASED, self._before + self._released)
