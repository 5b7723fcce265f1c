"""One of two processes that `dnic.cost.pair` starts: `pair_rank RANK THREADS MEET CORES`.

Both run the same phases at the same time; the first prints what it does and, at last, the figures,
as lines of JSON. Not for anything else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.parallel import DistributedDataParallel

from dnic.cost.clock import Clock, trimmed_mean, undisturbed
from dnic.cost.kernels import matrix_product, tiny_chain, vector_walk
from dnic.runtime.heap import keep_heap
from dnic.runtime.links import Count, Link, Receiver, Sender
from dnic.runtime.plan import TensorSpec

CPU = torch.device("cpu")
_WINDOW_S = 0.7
_TINY_BYTES = 64
_LARGE_BYTES = 4 << 20
_PINGS = 400
_MESSAGES = 40
_WIDE = 1024  # A layer of 4 MB.
_DEEP = 5
_SMALL_WIDTH = 256
_PIPELINE_WIDTH = 8


def main(rank: int, threads: int, meet: str, on: list[int]) -> None:
    """Measure; see the module."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, set(on))
    torch.set_num_threads(threads)
    keep_heap()
    torch.set_flush_denormal(True)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )

    def tell(said: Any) -> None:
        if rank == 0:
            print(json.dumps(said), flush=True)

    found: dict[str, float] = {}
    with torch.no_grad():
        jobs = {
            "arithmetic": matrix_product(),
            "memory": vector_walk()[0],
            "overhead": tiny_chain()[0],
        }
        for name, work in jobs.items():
            tell(f"two busy cores: {name}")
            found[f"crowded_{name}"] = crowding(work, rank, threads)
    tell("link")
    found["link_latency_us"] = latency_us(rank)
    found["link_bytes_per_s"], found["message_bytes_per_s"] = bandwidth(rank)
    tell("all-reduce")
    found |= reduction()
    tell("pipeline schedule")
    found["microbatch_us"] = microbatch_us(rank)
    dist.barrier()
    tell(found)
    dist.destroy_process_group()


def crowding(work: Callable[[], Any], rank: int, threads: int) -> float:
    """How many times longer `work` takes on both cores than on one; the mean of both ranks."""
    clock = Clock(CPU, threads)
    alone_us = 0.0
    for turn in range(2):
        dist.barrier()
        if turn == rank:
            alone_us = _for_a_while(work, clock, time.perf_counter())
    both_us = _for_a_while(work, clock, _agreed_start())
    return max(_mean(both_us / alone_us), 1.0)


def latency_us(rank: int) -> float:
    """One way of a tiny message, from going there and back."""
    sender, receiver = _link(rank, _TINY_BYTES, _PINGS)
    message = [torch.zeros(_TINY_BYTES, dtype=torch.uint8)]
    dist.barrier()
    times = []
    for _ in range(_PINGS):
        start = time.perf_counter()
        if rank == 0:
            sender.send(message)
        receiver.receive()
        receiver.release()
        if rank == 1:
            sender.send(message)
        times.append((time.perf_counter() - start) * 1e6)
    sender.finish()
    return _mean(undisturbed(times[_PINGS // 10 :]) / 2)


def bandwidth(rank: int) -> tuple[float, float]:
    """Bytes a second of large messages one way, and of CPU time that each side spends on them.

    CPU time of the whole process: gloo's own thread works on the same core.
    """
    sender, receiver = _link(rank, _LARGE_BYTES, _MESSAGES)
    message = [torch.ones(_LARGE_BYTES, dtype=torch.uint8)]
    dist.barrier()
    times, used = [], time.process_time()
    for _ in range(_MESSAGES):
        start = time.perf_counter()
        if rank == 0:
            sender.send(message)
        else:
            receiver.receive()
            receiver.release()
        times.append(time.perf_counter() - start)
    if rank == 0:
        sender.finish()
    cpu_s = (time.process_time() - used) / _MESSAGES
    dist.barrier()
    # The other direction, so that no receive is left posted.
    for _ in range(_MESSAGES):
        if rank == 1:
            sender.send(message)
        else:
            receiver.receive()
            receiver.release()
    if rank == 1:
        sender.finish()
    dist.barrier()
    arrived_s = torch.tensor([undisturbed(times[4:]) if rank == 1 else 0.0], dtype=torch.float64)
    dist.all_reduce(arrived_s)
    return _LARGE_BYTES / float(arrived_s), _LARGE_BYTES / _mean(cpu_s)


def reduction() -> dict[str, float]:
    """What DDP adds to a step of two ranks: for each all-reduce, byte, parameter, and in skew.

    From four steps: of a small network, of the same with more to compute, of one in many
    parameters, of a large one. gloo's own thread shares the core with the computation, which is
    most of what a small reduction costs.
    """
    narrow, few, many = _SMALL_WIDTH // 4, 8, 128
    small_us, short_us = _ddp_extra_us(_SMALL_WIDTH, few, rows=128, rounds=120)
    busy_us, long_us = _ddp_extra_us(_SMALL_WIDTH, few, rows=2048, rounds=40)
    many_us, _ = _ddp_extra_us(narrow, many, rows=128, rounds=120)
    large_us, compute_us = _ddp_extra_us(_WIDE, _DEEP, rows=128, rounds=40)
    skew = max(busy_us - small_us, 0.0) / max(long_us - short_us, 1.0)
    tensor_us = max(many_us - small_us, 0.0) / (many - few)
    small_bytes, large_bytes = 4 * few * _SMALL_WIDTH**2, 4 * _DEEP * _WIDE**2
    more_us = large_us - small_us - skew * (compute_us - short_us)
    us_per_byte = max(more_us, 1.0) / (large_bytes - small_bytes)
    # Two ranks: 2(n-1) = 2 latencies, 2(n-1)/n = 1 times the bytes.
    rest_us = us_per_byte * small_bytes + tensor_us * few + skew * short_us
    return {
        "reduce_bytes_per_s": 1e6 / us_per_byte,
        "reduce_latency_us": max(small_us - rest_us, 0.0) / 2,
        "reduce_tensor_us": tensor_us,
        "skew": skew,
    }


def _ddp_extra_us(width: int, depth: int, rows: int, rounds: int) -> tuple[float, float]:
    """What a step of a replica takes longer than one without reduction, and what that one takes.

    Means, not the least disturbed: waiting for the core is part of it.
    """
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), nn.ReLU())]
    net, x = nn.Sequential(*layers), torch.ones(rows, width)
    parallel = DistributedDataParallel(net)

    def step() -> float:
        for parameter in net.parameters():
            parameter.grad = None
        start = time.perf_counter()
        parallel(x).sum().backward()
        return (time.perf_counter() - start) * 1e6

    with_us, without_us = [], []
    for _ in range(rounds):
        dist.barrier()
        with_us.append(step())
        with parallel.no_sync():
            without_us.append(step())
    skipped = rounds // 10
    alone = trimmed_mean(without_us[skipped:])
    extra = trimmed_mean(with_us[skipped:]) - alone
    return max(_mean(extra), 1.0), _mean(alone)


def microbatch_us(rank: int) -> float:
    """What one forward or one backward of a microbatch costs in torch's pipeline, but computing.

    From the difference between few and many microbatches of a network with next to nothing to do.
    """
    few, many = 4, 20
    few_us, many_us = (_pipeline_us(rank, count) for count in (few, many))
    return max(_mean(many_us - few_us) / (many - few) / 2, 1.0)


def _pipeline_us(rank: int, microbatches: int, rounds: int = 40) -> float:
    net = nn.Linear(_PIPELINE_WIDTH, _PIPELINE_WIDTH)
    x = torch.ones(microbatches, _PIPELINE_WIDTH)
    # A stage sends gradients back only where its input asks for them.
    part = x[:1].clone().requires_grad_(rank > 0)
    stage = PipelineStage(net, rank, 2, CPU, input_args=(part,), output_args=(net(part),))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=lambda out, target: (out - target).sum())
    times = []
    for _ in range(rounds):
        net.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=x)
        times.append((time.perf_counter() - start) * 1e6)
    return trimmed_mean(times[rounds // 10 :])


def _link(rank: int, nbytes: int, messages: int) -> tuple[Sender, Receiver]:
    """Both directions of an edge to the other rank, begun."""
    spec = (TensorSpec("h", ("B",), "uint8", False),)
    count = Count(messages, nbytes, nbytes)
    sender = Sender(Link(1 - rank, 10 + rank, None, CPU), slots=3)
    receiver = Receiver(Link(1 - rank, 11 - rank, None, CPU), slots=3)
    sender.begin(spec, count)
    receiver.begin(spec, count)
    return sender, receiver


def _agreed_start() -> float:
    """A moment a little ahead that both ranks know; the monotonic clock is the machine's."""
    moment = torch.tensor([time.perf_counter() + 0.02], dtype=torch.float64)
    dist.broadcast(moment, 0)
    return float(moment)


def _for_a_while(work: Callable[[], Any], clock: Clock, start_s: float) -> float:
    """Microseconds of one run, measured for a window from `start_s` on."""
    while time.perf_counter() < start_s + _WINDOW_S / 10:
        work()
    times = []
    while time.perf_counter() < start_s + _WINDOW_S:
        begun = clock()
        work()
        times.append(clock.between(begun, clock()))
    return undisturbed(times)


def _mean(figure: float) -> float:
    """The mean of both ranks."""
    total = torch.tensor([figure], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / 2


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [int(c) for c in sys.argv[4].split(",")])
