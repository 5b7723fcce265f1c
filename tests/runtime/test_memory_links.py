"""Shared memory between ranks: the same messages as through gloo, and an end when a peer ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from dnic.errors import RuntimeFault
from dnic.runtime.board import Board
from dnic.runtime.failure import LinkFault
from dnic.runtime.links import Count, Link, Receiver, Sender
from dnic.runtime.memory_links import MemoryReceiver, MemorySender
from dnic.runtime.plan import TensorSpec
from dnic.runtime.record import read_record
from dnic.runtime.ring import RELEASED, WRITTEN, Ring, available
from dnic.runtime.transport import Transport

pytestmark = pytest.mark.skipif(not available(), reason="shared memory rings: x86-64 Linux only")

Make = Callable[..., Path]
Run = Callable[..., Any]
LINK = Link(1, 0, None, torch.device("cpu"))
SPECS = (
    TensorSpec("h", ("B", 5), "float32", True, "bfloat16"),
    TensorSpec("target", ("B",), "int64", False),
)


def both_ends(slots: int, timeout_s: float = 5.0) -> tuple[MemorySender, MemoryReceiver]:
    ring = Ring.create(slots, 1, timeout_s)
    at = os.getpid(), ring.descriptor, ring.token
    other = Ring.open(*at, slots, 0, timeout_s)
    ring.watch(os.getpid())
    return MemorySender(LINK, slots, other), MemoryReceiver(LINK, slots, ring)


def test_messages_arrive_in_order_over_phases_that_grow() -> None:
    """Three slots; phases of other batch sizes, so that memory grows while slots go round."""
    sender, receiver = both_ends(3)
    for messages, size, last in ((7, 4, 3), (2, 3, 3), (5, 900, 1), (4, 2000, 2000)):
        count = Count(messages, size, last)
        sender.begin(SPECS, count)
        receiver.begin(SPECS, count)
        sent = []
        for message in range(messages + 2):
            if message < messages:
                batch = count.size(message)
                tensors = [torch.randn(batch, 5), torch.randint(9, (batch,))]
                sender.send(tensors)
                sent.append(tensors)
            if message >= 2:
                hidden, target = receiver.receive()
                wanted = sent[message - 2]
                assert hidden.dtype == torch.float32
                assert torch.equal(hidden, wanted[0].bfloat16().float())
                assert torch.equal(target, wanted[1])
                assert receiver.owns(target) and not receiver.owns(hidden)
                receiver.release()
        sender.finish()
        with pytest.raises(RuntimeError, match="more messages are taken"):
            receiver.receive()


def test_a_message_stays_until_it_is_released_and_then_makes_way() -> None:
    sender, receiver = both_ends(2)
    spec = (TensorSpec("h", ("B",), "int64", False),)
    for end in (sender, receiver):
        end.begin(spec, Count(3, 4, 4))
    for value in (1, 2):
        sender.send([torch.full((4,), value)])
    (first,) = receiver.receive()
    third = threading.Thread(target=sender.send, args=([torch.full((4,), 3)],))
    third.start()
    third.join(0.3)
    assert third.is_alive(), "both slots are taken"
    assert first.tolist() == [1] * 4
    receiver.release()
    third.join(5)
    assert first.tolist() == [3] * 4, "used in place"
    assert sender.waited_s > 0.25


def test_counters_wrap_around() -> None:
    ring = Ring.create(2, 1, 0.3)
    ring.watch(os.getpid())
    ring.tell(WRITTEN, 2**32 + 1)
    assert ring.wait(WRITTEN, 2**32 + 1) == 0.0
    assert ring.wait(WRITTEN, 2**32 - 1) == 0.0
    with pytest.raises(LinkFault, match="no answer from stage 1 in time"):
        ring.wait(WRITTEN, 2**32 + 2)


def test_a_waiting_end_sleeps_and_is_woken() -> None:
    ring = Ring.create(2, 1, 10.0)
    ring.watch(os.getpid())
    waker = threading.Timer(0.4, ring.tell, (RELEASED, 1))
    waker.start()
    before = time.thread_time()
    assert ring.wait(RELEASED, 1) > 0.3
    assert time.thread_time() - before < 0.1
    waker.join()


def test_other_memory_is_refused() -> None:
    ring, other = Ring.create(2, 1, 1.0), Ring.create(2, 1, 1.0)
    with pytest.raises(OSError, match="another one"):
        Ring.open(os.getpid(), ring.descriptor, other.token, 2, 0, 1.0)
    with Path(__file__).open() as file, pytest.raises(OSError, match="another one"):
        Ring.open(os.getpid(), file.fileno(), ring.token, 2, 0, 1.0)


def _peer(place: Any, answer: Any) -> None:
    ring = Ring.open(*place, 2, 0, 60.0)
    sender = MemorySender(LINK, 2, ring)
    sender.begin((SPECS[1],), Count(5, 4, 4))
    sender.send([torch.arange(4)])
    answer.put(os.getpid())
    time.sleep(60)


@pytest.mark.processes
def test_a_killed_peer_ends_the_wait() -> None:
    ring = Ring.create(2, 1, 60.0)
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    place = os.getpid(), ring.descriptor, ring.token
    peer = context.Process(target=_peer, args=(place, answer))
    peer.start()
    ring.watch(answer.get())
    receiver = MemoryReceiver(LINK, 2, ring)
    receiver.begin((SPECS[1],), Count(5, 4, 4))
    killer = threading.Timer(0.3, os.kill, (peer.pid, signal.SIGKILL))
    killer.start()
    assert receiver.receive()[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(LinkFault, match="the connection to stage 1 is closed") as caught:
        receiver.receive()
    assert "its process has ended" in str(caught.value)
    peer.join()


def ends(first: str, second: str) -> list[Any]:
    """What two ranks settle on when their environments ask for this; errors in place of ends."""
    store, made = HashStore(), [None, None]

    def rank(number: int, wanted: str) -> None:
        transport = Transport(Board(store, 5.0), 5.0, wanted)
        try:
            made[number] = (
                transport.sender(LINK, 2, 3) if number == 0 else transport.receiver(LINK, 3)
            )
        except RuntimeFault as error:
            made[number] = error

    threads = [
        threading.Thread(target=rank, args=(number, wanted))
        for number, wanted in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("auto", "auto", (MemorySender, MemoryReceiver)),
        ("memory", "auto", (MemorySender, MemoryReceiver)),
        ("gloo", "auto", (Sender, Receiver)),
        ("auto", "gloo", (Sender, Receiver)),
        ("gloo", "memory", (Sender, RuntimeFault)),
        ("memory", "gloo", (RuntimeFault, Receiver)),
    ],
)
def test_both_ends_settle_on_the_same(first: str, second: str, kinds: tuple[type, ...]) -> None:
    assert tuple(type(end) for end in ends(first, second)) == kinds


def test_an_unknown_transport() -> None:
    with pytest.raises(RuntimeFault, match="'carrier pigeon' is no transport"):
        Transport(Board(None, 1.0), 1.0, "carrier pigeon")


@pytest.mark.processes
def test_hosts_of_their_own_have_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network namespace is another host, even on one machine."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    libc = ctypes.CDLL(None, use_errno=True)

    def elsewhere(number: int, made: list[Any], store: HashStore) -> None:
        if number and libc.unshare(0x40000000) != 0:  # CLONE_NEWNET, of this thread alone
            made[1] = "no namespace"
        transport = Transport(Board(store, 5.0), 5.0)
        made[number] = transport.receiver(LINK, 2) if number else transport.sender(LINK, 2, 2)

    made: list[Any] = [None, None]
    store = HashStore()
    both = [threading.Thread(target=elsewhere, args=(n, made, store)) for n in (0, 1)]
    monkeypatch.setattr("dnic.runtime.transport._NAMESPACES", "/proc/thread-self/ns")
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [type(end) for end in made] == [Sender, Receiver]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "mode", "keys"),
    [("mlp3", "decoupled", {"return_every": 2}), ("skip3", "exact", {}), ("conv2", "stale", {})],
)
def test_transports_carry_the_same_bits(
    bundle: Make,
    run_ranks: Run,
    same: Run,
    kind: str,
    mode: str,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = bundle(kind, **keys)
    records = []
    for transport in ("gloo", "memory"):
        out = tmp_path / transport
        arguments = (f"--mode={mode}", f"--record={out}", f"--out={tmp_path / 'out'}")
        run_ranks(folder, int(kind[-1]), *arguments, variables={"DNIC_TRANSPORT": transport})
        records.append(read_record(out))
    assert same(*records)


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["decoupled", "stale"])
def test_a_killed_rank_ends_the_others(bundle: Make, run_ranks: Run, mode: str) -> None:
    def edit(name: str, text: str) -> str:
        loss = "def loss(output, target):\n"
        return text.replace(loss, f"{loss}    import os; os.kill(os.getpid(), 9)\n")

    folder = bundle("mlp3", edit=edit)
    statuses = run_ranks(
        folder,
        3,
        f"--mode={mode}",
        fails=True,
        timeout_s=30,
        variables={"DNIC_TRANSPORT": "memory"},
    )
    assert statuses == [1, 1, -9]
