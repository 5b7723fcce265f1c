"""What carries the messages between two ranks: gloo, memory that both see, or NCCL.

torch has no transport through shared memory for point-to-point messages. Each link is settled by
itself when a run begins: the receiving rank makes a ring (`dnic.runtime.ring`) and offers it on the
board, the sending rank tries to open it and says whether it could. They meet where both are on one
machine, in one network (ranks in network namespaces of their own are hosts of their own) and see
one another's processes, on x86-64 Linux, with tensors in main memory; everywhere else nothing is
offered, and torch's own transport is used: gloo, between GPUs NCCL. `DNIC_TRANSPORT` overrules:
`gloo` offers and takes nothing, and between GPUs sends through main memory; `memory` ends the run
where a link cannot have it. What a run computes is the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnic.errors import RuntimeFault
from dnic.runtime.board import Board
from dnic.runtime.devices import TRANSPORT as TRANSPORT
from dnic.runtime.host_links import HostReceiver, HostSender
from dnic.runtime.links import Link, Receiver, Sender
from dnic.runtime.memory_links import MemoryReceiver, MemorySender
from dnic.runtime.nccl_links import NcclReceiver, NcclSender
from dnic.runtime.ring import Ring, available
from dnic.runtime.streams import CudaStreams, Streams

if TYPE_CHECKING:
    from dnic.runtime.worker import Worker

_KNOWN = ("auto", "gloo", "memory")
_NAMESPACES = "/proc/self/ns"


class Transport:
    """Makes the ends of a rank's links; both ends of all links must ask in the same order.

    Attributes:
        ends: all that were made.

    Args:
        board: where the ranks find one another.
        timeout_s: how long a rank waits for another.
        wanted: `auto`, `gloo` or `memory`.
        streams: of the device where the tensors live.
    """

    def __init__(
        self, board: Board, timeout_s: float, wanted: str = "auto", streams: Streams | None = None
    ) -> None:
        if wanted not in _KNOWN:
            raise RuntimeFault(
                f"{wanted!r} is no transport", where=TRANSPORT, expected=", ".join(_KNOWN)
            )
        self.ends: list[Sender | Receiver] = []
        self._board = board
        self._timeout_s = timeout_s
        self._wanted = wanted
        self._streams = streams or Streams()

    @classmethod
    def of(cls, worker: Worker) -> Transport:
        """A worker's, as its environment asks."""
        wanted = os.environ.get(TRANSPORT, "auto")
        return cls(worker.board, worker.options.timeout_s, wanted, worker.streams)

    def receiver(self, link: Link, slots: int) -> Receiver:
        """The receiving end of a link, with so many receives posted ahead.

        Raises:
            RuntimeFault: `memory` was asked for and cannot be had.
        """
        ring = self._agreed(link, slots)
        end = (
            MemoryReceiver(link, slots, ring)
            if ring is not None
            else self.plain_receiver(link, slots)
        )
        self.ends.append(end)
        return end

    def plain_receiver(self, link: Link, slots: int) -> Receiver:
        """The receiving end where torch carries the messages."""
        if not isinstance(self._streams, CudaStreams):
            return Receiver(link, slots)
        kind = HostReceiver if self._wanted == "gloo" else NcclReceiver
        return kind(link, slots, self._streams)

    def plain_sender(self, link: Link, slots: int) -> Sender:
        """The sending end where torch carries the messages."""
        if not isinstance(self._streams, CudaStreams):
            return Sender(link, slots)
        kind = HostSender if self._wanted == "gloo" else NcclSender
        return kind(link, slots, self._streams)

    def _agreed(self, link: Link, slots: int) -> Ring | None:
        """The ring that a receiving rank has made and the sending one has opened."""
        ring = self._made(link, slots)
        offer = None
        if ring is not None:
            place = {"host": _host(), "process": os.getpid(), "descriptor": ring.descriptor}
            offer = {**place, "token": ring.token}
        self._board.publish(f"link/{link.tag}/offer", offer)
        if ring is not None:
            sender = self._board.read(f"link/{link.tag}/process")
            if sender is not None:
                ring.watch(sender)
                return ring
        self._refuse(link)
        return None

    def sender(self, link: Link, slots: int, received: int) -> Sender:
        """The sending end of a link.

        Args:
            link: where to.
            slots: messages that may be under way.
            received: slots of the receiving end.

        Raises:
            RuntimeFault: `memory` was asked for and cannot be had.
        """
        offer = self._board.read(f"link/{link.tag}/offer")
        ring = None
        if offer is not None:
            ring = self._taken(link, offer, received)
            answer = os.getpid() if ring is not None else None
            self._board.publish(f"link/{link.tag}/process", answer)
        if ring is None:
            self._refuse(link)
        end = (
            MemorySender(link, received, ring)
            if ring is not None
            else self.plain_sender(link, slots)
        )
        self.ends.append(end)
        return end

    def _made(self, link: Link, slots: int) -> Ring | None:
        if self._wanted == "gloo" or link.device.type != "cpu" or not available():
            return None
        try:
            return Ring.create(slots, link.stage, self._timeout_s)
        except OSError:
            return None

    def _taken(self, link: Link, offer: dict[str, Any], slots: int) -> Ring | None:
        here = self._wanted != "gloo" and link.device.type == "cpu" and available()
        if not here or offer["host"] != _host():
            return None
        at = offer["process"], offer["descriptor"], offer["token"]
        try:
            return Ring.open(*at, slots, link.stage, self._timeout_s)
        except OSError:
            return None

    def _refuse(self, link: Link) -> None:
        if self._wanted == "memory":
            raise RuntimeFault(
                f"there is no shared memory with stage {link.stage}",
                where=f"{TRANSPORT}=memory",
                expected="both ranks on one machine, with CPU tensors, on x86-64 Linux",
                hint=f"{TRANSPORT}=auto takes what there is",
            )


def _host() -> list[str]:
    """What two processes have in common that can share memory and would not use a network."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    spaces = (Path(_NAMESPACES, kind).readlink() for kind in ("pid", "net", "uts"))
    return [boot, *map(str, spaces)]
