"""What carries the messages between two ranks: gloo or NCCL, or memory that both see.

torch has no transport through shared memory for point-to-point messages. Each link is settled by
itself when a run begins: the receiving rank makes a ring (`dnic.runtime.ring`) and offers it on the
board, the sending rank tries to open it and says whether it could. They meet where both are on one
machine, in one network (ranks in network namespaces of their own are hosts of their own) and see
one another's processes, on x86-64 Linux, with tensors in main memory; everywhere else nothing is
offered, and torch's own transport is used. `DNIC_TRANSPORT` overrules: `gloo` offers and takes
nothing, `memory` ends the run where a link cannot have it. What a run computes is the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnic.errors import RuntimeFault
from dnic.runtime.board import Board
from dnic.runtime.links import Link, Receiver, Sender
from dnic.runtime.memory_links import MemoryReceiver, MemorySender
from dnic.runtime.ring import Ring, available

if TYPE_CHECKING:
    from dnic.runtime.worker import Worker

TRANSPORT = "DNIC_TRANSPORT"
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
    """

    def __init__(self, board: Board, timeout_s: float, wanted: str = "auto") -> None:
        if wanted not in _KNOWN:
            raise RuntimeFault(
                f"{wanted!r} is no transport", where=TRANSPORT, expected=", ".join(_KNOWN)
            )
        self.ends: list[Sender | Receiver] = []
        self._board = board
        self._timeout_s = timeout_s
        self._wanted = wanted

    @classmethod
    def of(cls, worker: Worker) -> Transport:
        """A worker's, as its environment asks."""
        wanted = os.environ.get(TRANSPORT, "auto")
        return cls(worker.board, worker.options.timeout_s, wanted)

    def receiver(self, link: Link, slots: int) -> Receiver:
        """The receiving end of a link, with so many receives posted ahead.

        Raises:
            RuntimeFault: `memory` was asked for and cannot be had.
        """
        ring = self._agreed(link, slots)
        end = Receiver(link, slots) if ring is None else MemoryReceiver(link, slots, ring)
        self.ends.append(end)
        return end

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
        end = Sender(link, slots) if ring is None else MemorySender(link, received, ring)
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
