"""No slot is overwritten before it was read, on GPUs that exist only in what is ordered.

`recorded_cuda.py` says how that is seen.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dnic.runtime import links
from dnic.runtime.host_links import HostReceiver, HostSender
from dnic.runtime.links import Count, Link
from dnic.runtime.nccl_links import NcclReceiver, NcclSender
from dnic.runtime.plan import TensorSpec
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

HERE = Path(__file__).parent
LINK = Link(1, 0, None, torch.device("cpu"))
SPECS = (
    TensorSpec("h", ("B", 5), "float32", True, "bfloat16"),
    TensorSpec("target", ("B",), "int64", False),
)


@pytest.fixture
def recorded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recorded_cuda", HERE / "recorded_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recorded_cuda"] = module
    spec.loader.exec_module(module)
    return module


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


def run_both_ends(
    recorded: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    slots: int,
    *,
    broken: str = "",
    host: bool = False,
) -> Any:
    """Two phases of messages that are kept for `window` steps; checks what arrives."""
    order = recorded.Order(broken)
    streams = recorded.Recorded(order)
    monkeypatch.setattr(links, "dist", recorded.Messages(order, *transfers(), host=host))
    sender_of, receiver_of = (HostSender, HostReceiver) if host else (NcclSender, NcclReceiver)
    with recorded.Watch(order):
        sender = sender_of(LINK, slots, streams)
        receiver = receiver_of(LINK, slots, streams)
        for messages, size, last in ((7, 4, 3), (5, 90, 1)):
            count = Count(messages, size, last)
            sender.begin(SPECS, count)
            receiver.begin(SPECS, count)
            kept: deque[tuple[list[Tensor], list[Tensor]]] = deque()
            for message in range(messages + window):
                if message < messages:
                    batch = count.size(message)
                    sent = [torch.randn(batch, 5), torch.randint(9, (batch,))]
                    sender.send(sent)
                    kept.append((sent, receiver.receive()))
                if len(kept) > window or message >= messages:
                    sent, arrived = kept.popleft()
                    assert torch.equal(arrived[0], sent[0].bfloat16().float())
                    assert torch.equal(arrived[1], sent[1])
                    receiver.release()
            sender.finish()
        assert sender.sent_bytes and streams.taken_stalls()
    assert order.counts["message read"] == order.counts["message write"] == 12
    return order


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize(("window", "slots"), [(0, 1), (0, 2), (1, 2), (2, 3), (2, 5), (4, 5)])
def test_no_slot_is_overwritten_before_it_was_read(
    recorded: ModuleType, monkeypatch: pytest.MonkeyPatch, window: int, slots: int, host: bool
) -> None:
    assert run_both_ends(recorded, monkeypatch, window, slots, host=host).races == []


@pytest.mark.parametrize(("window", "slots"), [(0, 1), (1, 2), (2, 3)])
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
    recorded: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    slots: int,
    broken: str,
    race: str,
) -> None:
    assert race in run_both_ends(recorded, monkeypatch, window, slots, broken=broken).races


def test_a_receive_waits_for_its_slot_and_not_for_what_was_enqueued_since(
    recorded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a message arrives while the stage still works on the one before."""
    order = recorded.Order()
    streams = recorded.Recorded(order)
    monkeypatch.setattr(links, "dist", recorded.Messages(order, *transfers()))
    sender, receiver = NcclSender(LINK, 2, streams), NcclReceiver(LINK, 2, streams)
    for end in (sender, receiver):
        end.begin(SPECS, Count(2, 4, 4))
    done = {}
    for message in range(2):
        sender.send([torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)])
        done[message] = streams.mark().clock["compute"]
        receiver.receive()
    posted = order.moment("message:0 from 1")["compute"]
    assert posted < done[0] < done[1]


INSTALL = """import sys

sys.path.insert(0, {here!r})
import recorded_cuda

ORDER = recorded_cuda.install({broken!r}, host={host})

"""
REPORT = """
    import os
    from pathlib import Path

    path = Path(__file__).with_name(f"order{os.environ['RANK']}.json")
    recorded_cuda.report(ORDER, path)
"""


def on_recorded_gpus(*, broken: str = "", host: bool = False) -> Callable[[str, str], str]:
    """Makes every rank's `train.py` run the engine on a recorded GPU."""

    def edit(name: str, text: str) -> str:
        if name != "train.py":
            return text
        install = INSTALL.format(here=str(HERE), broken=broken, host=host)
        return install + text.rstrip() + REPORT

    return edit


def read_orders(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("order*.json"))]


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
    folder = bundle(kind, window=window, warmup_steps=2, edit=on_recorded_gpus(host=host))
    variables = {"DNIC_TRANSPORT": "gloo"} if host else {}
    record = tmp_path / "record"
    given = ("--no-checkpoint", f"--record={record}", *arguments)
    run_ranks(folder, int(kind[-1]), *given, variables=variables)
    for order in read_orders(folder):
        assert order["races"] == []
        assert order["counts"]["message write"] > 7 and order["counts"]["compute read"] > 100
    options: dict[str, Any] = dict(argument[2:].split("=") for argument in arguments)
    if "microbatches" in options:
        options["microbatches"] = int(options["microbatches"])
    expected: Record = reference(folder, **options).run()
    assert same(read_record(record), expected)
