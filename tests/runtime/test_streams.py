"""No slot is overwritten before it was read, on GPUs that exist only in what is ordered.

`recorded_cuda.py` says how that is seen.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dnic.runtime import links
from dnic.runtime.board import Board
from dnic.runtime.host_links import HostReceiver, HostSender
from dnic.runtime.links import Count, Link
from dnic.runtime.nccl_links import NcclReceiver, NcclSender
from dnic.runtime.plan import TensorSpec
from dnic.runtime.record import Record, read_record
from dnic.runtime.transport import Transport

Make = Callable[..., Path]
Run = Callable[..., Any]

LINK = Link(1, 0, None, torch.device("cpu"))
SPECS = (
    TensorSpec("h", ("B", 5), "float32", True, "bfloat16"),
    TensorSpec("target", ("B",), "int64", False),
)


def transfers() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Sends and receives within one process, each way a queue of what was in the buffers."""
    under_way: dict[int, deque[Tensor]] = defaultdict(deque)

    def send(buffer: Tensor, peer: int, tag: int) -> Callable[[], None]:
        under_way[tag].append(torch.from_numpy(buffer.numpy().copy()))
        return lambda: None

    def receive(buffer: Tensor, peer: int, tag: int) -> Callable[[], None]:
        def finish() -> None:
            buffer.numpy()[:] = under_way[tag].popleft().numpy()

        return finish

    return send, receive


class Side:
    """One end of a link, in a process of its own."""

    def __init__(self, recorded: ModuleType, broken: str, host: bool, moved: Any) -> None:
        self.order = recorded.Order(broken)
        self.streams = recorded.Recorded(self.order)
        self._messages = recorded.Messages(self.order, *moved, host=host)
        self._watch = recorded.Watch(self.order)

    def __enter__(self) -> Side:
        links.dist = self._messages
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(*error)


@pytest.fixture
def sides(
    recorded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Side, Side]]:
    monkeypatch.setattr(links, "dist", None)

    def make(broken: str = "", *, host: bool = False) -> tuple[Side, Side]:
        moved = transfers()
        return Side(recorded, broken, host, moved), Side(recorded, broken, host, moved)

    return make


def run_both_ends(there: Side, here: Side, window: int, slots: int, *, host: bool = False) -> None:
    """Two phases of messages that are kept for `window` steps; checks what arrives."""
    sender_of, receiver_of = (HostSender, HostReceiver) if host else (NcclSender, NcclReceiver)
    sender = sender_of(LINK, slots, there.streams)
    receiver = receiver_of(LINK, slots, here.streams)
    for messages, size, last in ((7, 4, 3), (5, 90, 1)):
        count = Count(messages, size, last)
        with there:
            sender.begin(SPECS, count)
        with here:
            receiver.begin(SPECS, count)
        kept: deque[tuple[list[Tensor], list[Tensor]]] = deque()
        for message in range(messages + window):
            if message < messages:
                batch = count.size(message)
                with there:
                    sent = [torch.randn(batch, 5), torch.randint(9, (batch,))]
                    sender.send(sent)
                with here:
                    kept.append((sent, receiver.receive()))
            if len(kept) > window or message >= messages:
                sent, arrived = kept.popleft()
                with here:
                    assert torch.equal(arrived[0], sent[0].bfloat16().float())
                    assert torch.equal(arrived[1], sent[1])
                    receiver.release()
        with there:
            sender.finish()
    assert there.order.counts["message read"] == here.order.counts["message write"] == 12
    assert here.streams.taken_stalls()


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize(("window", "slots"), [(0, 1), (0, 2), (1, 2), (2, 3), (2, 5), (4, 5)])
def test_no_slot_is_overwritten_before_it_was_read(
    sides: Callable[..., tuple[Side, Side]], window: int, slots: int, host: bool
) -> None:
    there, here = sides(host=host)
    run_both_ends(there, here, window, slots, host=host)
    assert there.order.races == here.order.races == []


@pytest.mark.parametrize(("window", "slots"), [(0, 1), (1, 2), (2, 3), (4, 5)])
@pytest.mark.parametrize(
    ("broken", "race"),
    [
        ("1", "message:0 to 1 read and compute writes"),
        ("2", "compute wrote and message:0 to 1 reads"),
        ("3", "compute read and message:0 from 1 writes"),
        ("4", "message:0 from 1 wrote and compute reads"),
    ],
)
def test_without_one_of_the_events_there_is_a_race(
    sides: Callable[..., tuple[Side, Side]], window: int, slots: int, broken: str, race: str
) -> None:
    """The numbers are those of `dnic.runtime.nccl_links`."""
    there, here = sides(broken)
    run_both_ends(there, here, window, slots)
    assert race in there.order.races + here.order.races


@pytest.mark.parametrize("host", [False, True])
def test_a_message_waits_for_its_slot_and_not_for_what_was_enqueued_since(
    sides: Callable[..., tuple[Side, Side]], host: bool
) -> None:
    """So it arrives while the stage works on the one before; but not before a phase begins."""
    there, here = sides(host=host)
    sender_of, receiver_of = (HostSender, HostReceiver) if host else (NcclSender, NcclReceiver)
    sender, receiver = sender_of(LINK, 2, there.streams), receiver_of(LINK, 2, here.streams)
    into_slot = "lane:1" if host else "message:0 from 1"
    for size in (4, 400):  # a second phase has larger slots, where others computed before
        with there:
            sender.begin(SPECS, Count(2, size, size))
        earlier = here.streams.mark().moment.clock["compute"]
        with here:
            receiver.begin(SPECS, Count(2, size, size))
        begun = here.streams.mark().moment.clock["compute"]
        for _ in range(2):
            with there:
                sender.send([torch.randn(size, 5), torch.zeros(size, dtype=torch.int64)])
            with here:
                receiver.receive()[0].sum()
        assert earlier < here.order.moment(into_slot).clock["compute"] < begun
        receiver.release()
        receiver.release()


def test_what_carries_messages_between_gpus(recorded: ModuleType) -> None:
    streams = recorded.Recorded(recorded.Order())
    board = Board(None, 1.0)
    for wanted, ends in (
        ("auto", (NcclSender, NcclReceiver)),
        ("gloo", (HostSender, HostReceiver)),
    ):
        transport = Transport(board, 1.0, wanted, streams)
        made = transport.plain_sender(LINK, 2), transport.plain_receiver(LINK, 2)
        assert tuple(map(type, made)) == ends
    transport = Transport(board, 1.0)
    assert type(transport.plain_sender(LINK, 2)) is links.Sender
    assert type(transport.plain_receiver(LINK, 2)) is links.Receiver


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "window", "arguments", "host"),
    [
        ("mlp2", 1, (), False),
        ("mlp3", 2, ("--microbatches=4",), False),
        ("skip3", 2, (), False),
        ("mlp2", 2, ("--mode=exact", "--microbatches=4"), False),
        ("mlp2", 2, ("--mode=stale",), False),
        ("mlp2", 2, (), True),
    ],
)
def test_the_whole_engine_is_free_of_races_and_computes_the_same_bits(
    recorded: ModuleType,
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    tmp_path: Path,
    kind: str,
    window: int,
    arguments: tuple[str, ...],
    host: bool,
) -> None:
    folder = bundle(kind, window=window, warmup_steps=2, edit=recorded.on_recorded_gpus(host=host))
    variables = {"DNIC_TRANSPORT": "gloo"} if host else {}
    record = tmp_path / "record"
    given = (
        "--epochs=1",
        "--no-checkpoint",
        f"--record={record}",
        f"--out={tmp_path / 'run'}",
        *arguments,
    )
    run_ranks(folder, int(kind[-1]), *given, variables=variables)
    for order in recorded.read_orders(folder):
        assert order["races"] == []
        assert order["counts"]["message write"] >= 7 and order["counts"]["compute read"] > 100
    options: dict[str, Any] = dict(argument[2:].split("=") for argument in arguments)
    if "microbatches" in options:
        options["microbatches"] = int(options["microbatches"])
    expected: Record = reference(folder, **options).run(epochs=1)
    assert same(read_record(record), expected)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for parts, step, share in zip(
        row["parts_us"], row["rank_step_us"], row["waited_share"], strict=True
    ):
        assert 0 < share < 1 and parts["wait"] > 0
        if "--mode=stale" not in arguments:  # that goes on after its last step
            assert sum(parts.values()) == pytest.approx(step["mean"], rel=0.01)


@pytest.mark.processes
def test_a_race_in_the_engine_is_seen(recorded: ModuleType, bundle: Make, run_ranks: Run) -> None:
    folder = bundle("mlp2", edit=recorded.on_recorded_gpus(broken="3"))
    run_ranks(folder, 2, "--no-checkpoint", "--no-evaluate", "--epochs=1")
    assert all(order["races"] for order in recorded.read_orders(folder))
