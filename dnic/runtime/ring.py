"""Shared memory between two processes of one machine: slots, two counters, and how to wait.

`multiprocessing.shared_memory` and files in `/dev/shm` have names, which stay behind when a process
is killed, and `/dev/shm` is 64 MB in a container. A memfd has no name: the receiving process makes
it, the other one opens it through `/proc/PID/fd`, and it is gone with the last of the two.

    0     written   messages that the sender has put into slots, over all phases
    64    released  messages whose slot the receiver has given back
    128   token     tells this ring apart from whatever else may have the same number
    4096  slots     message m lies in slot `m % slots`

The counters are 32 bits wide, wrap around, and are written after what they tell of; that order is
what other cores see on x86, so only there is this used. A process that waits looks for some
microseconds, then sleeps on the counter (a futex, see futex(2)), so that it takes no time from a
process on the same core. Now and then it looks whether the other one still lives (pidfd).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import secrets
import select
import sys
import time
from contextlib import suppress

import torch
from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.failure import LinkFault

WRITTEN, RELEASED = 0, 16  # in words of 32 bits
_TOKEN = slice(128, 144)
_PAGE = 4096
_MASK = 2**32 - 1
_HALF = 2**31
# As long as two system calls take: a message that comes within it is not slept for.
_SPIN_S = 20e-6
_LOOK_S = 0.1
_FUTEX, _FUTEX_WAIT, _FUTEX_WAKE = 202, 0, 1  # x86-64


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def available() -> bool:
    """Whether this machine has what a ring needs."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("dnic"))
    except (AttributeError, OSError):  # an old kernel, or a sandbox that allows neither
        return False
    return True


class Ring:
    """One direction between two processes.

    Args:
        descriptor: of the memory; closed with the ring.
        slots: messages that fit into it.
        peer: the stage at the other end, for messages.
        timeout_s: how long to wait for it.
    """

    def __init__(self, descriptor: int, slots: int, peer: int, timeout_s: float) -> None:
        self._descriptor = descriptor
        self._slots = slots
        self._peer = peer
        self._timeout_s = timeout_s
        self._life = -1
        self._header = mmap.mmap(descriptor, _PAGE)
        self._counters = memoryview(self._header).cast("I")
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._header))
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        syscall.restype = ctypes.c_long
        number, pointer = ctypes.c_long, ctypes.c_void_p
        syscall.argtypes = [number, pointer, ctypes.c_int, ctypes.c_uint32, pointer, pointer]
        self._syscall = syscall
        self._look = _Timespec(0, int(_LOOK_S * 1e9))

    @classmethod
    def create(cls, slots: int, peer: int, timeout_s: float) -> Ring:
        """A new ring, the receiver's.

        Raises:
            OSError: there is no memory for it.
        """
        descriptor = os.memfd_create("dnic", os.MFD_CLOEXEC)
        os.posix_fallocate(descriptor, 0, _PAGE)
        ring = cls(descriptor, slots, peer, timeout_s)
        ring._header[_TOKEN] = secrets.token_bytes(16)
        return ring

    @classmethod
    def open(
        cls, process: int, descriptor: int, token: str, slots: int, peer: int, timeout_s: float
    ) -> Ring:
        """The ring that another process has made, the sender's.

        Args:
            process: its number.
            descriptor: of the memory, there.
            token: as the ring's.
            slots: as there.
            peer: its stage.
            timeout_s: how long to wait for it.

        Raises:
            OSError: it cannot be opened, or is another one.
        """
        own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(own).st_size < _PAGE:
            os.close(own)
            raise OSError("the memory is another one")
        ring = cls(own, slots, peer, timeout_s)
        if ring.token != token:
            raise OSError("the memory is another one")
        ring.watch(process)
        return ring

    def __del__(self) -> None:
        for descriptor in (self._descriptor, self._life):
            if descriptor >= 0:
                os.close(descriptor)

    @property
    def descriptor(self) -> int:
        """Of the memory, in this process."""
        return self._descriptor

    @property
    def token(self) -> str:
        """What tells this ring apart."""
        return self._header[_TOKEN].hex()

    def watch(self, process: int) -> None:
        """Notices when the other process ends."""
        with suppress(ProcessLookupError):  # it has already
            self._life = os.pidfd_open(process)

    def resize(self, nbytes: int) -> list[Tensor]:
        """The slots, of at least so many bytes each; both ends ask for the same.

        Raises:
            RuntimeFault: there is no memory for them.
        """
        stride = -(-nbytes // _PAGE) * _PAGE
        total = _PAGE + self._slots * stride
        try:
            os.posix_fallocate(self._descriptor, 0, total)  # never shrinks what the other has grown
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            memory = torch.frombuffer(
                mmap.mmap(self._descriptor, total, flags=flags), dtype=torch.uint8
            )
        except OSError as error:
            raise RuntimeFault(
                f"no shared memory for {self._slots} messages of {nbytes} bytes: {error}",
                hint="a smaller window, or DNIC_TRANSPORT=gloo",
            ) from error
        starts = range(_PAGE, total, stride)
        return [memory[start : start + stride] for start in starts]

    def tell(self, counter: int, value: int) -> None:
        """Sets a counter of this end's, and wakes the other end."""
        self._counters[counter] = value & _MASK
        self._syscall(_FUTEX, self._start + 4 * counter, _FUTEX_WAKE, 1, None, None)

    def wait(self, counter: int, value: int) -> float:
        """Waits until the other end's counter has reached a value; returns the time, in seconds.

        Raises:
            LinkFault: the other process is gone, or did not answer in time.
        """
        counters, target = self._counters, value & _MASK
        if (counters[counter] - target) & _MASK < _HALF:
            return 0.0
        started = now = time.perf_counter()
        while True:
            seen = counters[counter]
            if (seen - target) & _MASK < _HALF:
                return now - started
            now = time.perf_counter()
            if now - started > _SPIN_S:
                self._sleep(counter, seen, now - started)
                now = time.perf_counter()

    def _sleep(self, counter: int, seen: int, waited_s: float) -> None:
        """Sleeps until a counter changes, or for a while."""
        address, look = self._start + 4 * counter, ctypes.byref(self._look)
        if self._syscall(_FUTEX, address, _FUTEX_WAIT, seen, look, None) == 0:
            return
        if self._counters[counter] != seen:
            return
        if self._ended():
            # What it wrote before its end counts all the same.
            if self._counters[counter] == seen:
                raise LinkFault(f"stage {self._peer}", "its process has ended (shared memory)")
        elif waited_s > self._timeout_s:
            raise LinkFault(
                f"stage {self._peer}", f"timed out after {waited_s:.0f} s (shared memory)"
            )

    def _ended(self) -> bool:
        if self._life < 0:
            return True
        poll = select.poll()
        poll.register(self._life, select.POLLIN)
        return bool(poll.poll(0))
