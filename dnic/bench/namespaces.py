"""Network namespaces, each with a TUN device of its own: hosts without a second machine.

A namespace is held by a process that waits for its standard input to end (`unshare --net cat`).
So there is nothing to clean up by name: when this process ends, however it does, the input ends,
the holder with it, and the namespace with the holder. `ip netns` would leave names behind.

The TUN device of a namespace has its other end here, as a file: each read gives an IP packet that
the namespace sent, each write is one that it receives. `dnic.bench.relay` joins such files. Only
Linux has these, and only root may make them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dnic.bench.held import let_go
from dnic.errors import RuntimeFault

MTU_BYTES = 65000
_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_DEVICE_PATTERN = b"dnic%d"  # the kernel puts a number that is free
# Packets that wait in the kernel while the relay does not read: some windows of TCP.
_QUEUE_PACKETS = 2000
_TOOLS = ("ip", "unshare", "nsenter", "taskset")


@dataclass(frozen=True)
class Namespace:
    """One namespace.

    Attributes:
        holder: process that holds it.
        device: name of its TUN device.
        address: of it, IPv4.
        tun: file descriptor of the device's other end.
    """

    holder: int
    device: str
    address: str
    tun: int

    def command(self, command: Sequence[str], core: int | None = None) -> list[str]:
        """A command as it runs inside, on one core if that is said."""
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        return ["nsenter", f"--net=/proc/{self.holder}/ns/net", "--", *pinned, *command]

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: IO[bytes] | int = subprocess.DEVNULL,
        core: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a command inside.

        Args:
            command: the command.
            environment: its whole environment; None: this process's.
            log: where to it writes.
            core: the only one that it may use.
        """
        return subprocess.Popen(
            self.command(command, core),
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us, who then end it in order
        )


def unavailable() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no network namespaces"
    if os.geteuid() != 0:
        return "only root may make network namespaces and TUN devices"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} is missing"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} cannot be found (iproute2 and util-linux have them)"
    return None


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Namespaces `10.77.0.1`, `10.77.0.2`, ..., gone afterwards.

    Args:
        count: how many.

    Raises:
        RuntimeFault: there can be none here, with the reason.
    """
    reason = unavailable()
    if reason is not None:
        raise _refused(reason)
    with ExitStack() as stack:
        yield [_namespace(stack, f"10.77.0.{number + 1}") for number in range(count)]


def _namespace(stack: ExitStack, address: str) -> Namespace:
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    stack.callback(let_go, holder)
    if holder.stdout is None or not holder.stdout.readline():
        raise _refused("unshare --net failed")  # its own words are on the terminal
    try:
        tun, device = _tun()
    except OSError as error:
        raise _refused(f"no TUN device: {error}") from error
    stack.callback(os.close, tun)
    namespace = Namespace(holder.pid, device, address, tun)
    _run(["ip", "link", "set", device, "netns", str(holder.pid)])
    for line in (
        "link set lo up",
        f"link set {device} mtu {MTU_BYTES} txqueuelen {_QUEUE_PACKETS}",
        f"address add {address}/24 dev {device}",
        f"link set {device} up",
    ):
        _run(namespace.command(["ip", *line.split()]))
    return namespace


def _tun() -> tuple[int, str]:
    """A new TUN device: its other end, and its name."""
    tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", _DEVICE_PATTERN, _IFF_TUN | _IFF_NO_PI)
        named = fcntl.ioctl(tun, _TUNSETIFF, request)
    except OSError:
        os.close(tun)
        raise
    return tun, named[:16].rstrip(b"\0").decode()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _refused(f"{' '.join(command)}: {done.stderr.strip()}")


def _refused(reason: str) -> RuntimeFault:
    return RuntimeFault(
        f"there can be no slow link here: {reason}",
        where="--link",
        expected="Linux, root, /dev/net/tun, iproute2 and util-linux",
        hint="without --link the ranks talk over this machine's own loopback",
    )
