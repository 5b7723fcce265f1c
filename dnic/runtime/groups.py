"""NCCL's communicators between stages: one for each direction of each pair.

A communicator runs its messages one after the other, on a stream of its own, so a direction that
shared one would wait for the other's messages. gloo tells links apart by tags and needs none.

Communicators are made when a run begins, by all ranks in the order of the plan, and a byte is sent
through each. torch makes them at the first message otherwise, and NCCL connects the two devices
then; both wait, on the host, for the other rank to come to the same message. Ranks whose first
messages come in different orders would wait for one another for ever, and so could whoever waits
for the device meanwhile. `device_id` of `new_group` makes the communicator at once; without the
byte its two devices would still connect later. The default group is not bound to a device: only
clipping over all stages, ddp and torch's pipelines use it, and `warm_up` connects it for them.

Written against torch's documentation and ProcessGroupNCCL; it has not run on a GPU.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import torch
from torch import distributed as dist

from dnic.runtime.devices import staged_by_host
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.place import Place

Group = dist.ProcessGroup | None


def groups(
    source: int,
    to: int,
    device: torch.device,
    timeout_s: float,
    place: Place = Place(),  # noqa: B008  # frozen
) -> tuple[Group, Group]:
    """The process groups of the two directions between two stages, there and back.

    All processes must ask, in one order; it returns on the two stages when they are connected.

    Args:
        source, to: the stages.
        device: where this process's tensors live.
        timeout_s: how long a message may be under way; torch's own limit would be ten minutes.
        place: of this process; every column of replicas has groups of its own.

    Returns:
        None and None where the default group does.

    Raises:
        LinkFault: the other stage is gone.
    """
    if device.type != "cuda" or staged_by_host():
        return None, None
    made: list[tuple[Group, Group]] = []
    with lost_peers_named():
        for replica in range(place.replicas):
            one, other = (stage * place.replicas + replica for stage in (source, to))
            there = _made(one, other, device, timeout_s)
            made.append((there, _made(other, one, device, timeout_s)))
    return made[place.replica]


def warm_up(device: torch.device) -> None:
    """Connects the devices of all ranks, which all must ask for; nothing without NCCL.

    Raises:
        LinkFault: another process is gone.
    """
    if device.type != "cuda" or staged_by_host():
        return
    with lost_peers_named():
        dist.all_reduce(torch.zeros(1, device=device))
        torch.cuda.current_stream(device).synchronize()


def _made(source: int, to: int, device: torch.device, timeout_s: float) -> Group:
    group = dist.new_group(
        [source, to],
        timeout=timedelta(seconds=timeout_s),
        backend="nccl",
        pg_options=_options(),
        group_desc=f"rank {source} to rank {to}",
        device_id=device,
    )
    rank = dist.get_rank()
    if rank in (source, to):
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        if rank == source:
            dist.send(byte, to, group=group)
        else:
            dist.recv(byte, source, group=group)
        torch.cuda.current_stream(device).synchronize()
    return cast(Group, group)


def _options() -> Any:
    """Messages are short and others wait for them: their kernels come before those that compute."""
    options = dist.ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    return options
