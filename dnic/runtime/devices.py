"""The device of a process, and what must be settled before the first process group.

torchrun numbers the processes of a machine and leaves the choice of a GPU to them: here the local
rank is the number of the device, among those that `CUDA_VISIBLE_DEVICES` leaves; where a scheduler
shows every process one device alone, that one. NCCL cannot have two ranks on one GPU and says so
late and in its own words, so the ranks compare their devices first. Through gloo
(`DNIC_TRANSPORT=gloo`) several stages may share a GPU. Not handled: several GPUs in one process.

Written against torch's and NVIDIA's documentation; it has not run on a GPU.
"""

from __future__ import annotations

import os

import torch

from dnic.errors import RuntimeFault
from dnic.runtime.board import Board
from dnic.runtime.options import PIPELINES, Options
from dnic.runtime.place import Place

TRANSPORT = "DNIC_TRANSPORT"

# What CUDA reads when it starts, and what is set unless the environment says otherwise. NCCL's
# kernels wait on the device for the other rank, and stand in the way of what waits for the device:
_BEFORE_CUDA = {
    # loading a kernel at its first use may wait for all kernels that run (CUDA programming guide,
    # lazy loading, potential hazards);
    "CUDA_MODULE_LOADING": "EAGER",
    # with fewer hardware queues than streams a send may be put behind a receive that waits;
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    # and the messages of a group shall be in one order: it carries one direction of one edge.
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "0",
}


def prepare_cuda(options: Options, place: Place) -> None:
    """Sets what CUDA and NCCL read from the environment; called before anything asks for CUDA."""
    if options.device == "cpu" or place.world_size == 1 or torch.version.cuda is None:
        return
    for name, value in _BEFORE_CUDA.items():
        os.environ.setdefault(name, value)


def choose_device(options: Options, place: Place) -> torch.device:
    """Where this process computes; a GPU becomes its current device.

    Raises:
        RuntimeFault: there is no CUDA device, or none for this process.
    """
    if options.device == "cpu" or not torch.cuda.is_available():
        if options.device == "cuda":
            raise RuntimeFault("there is no CUDA device", where="--device", expected="auto, cpu")
        return torch.device("cpu")
    index = device_index(place.local_rank, torch.cuda.device_count(), shared=staged_by_host())
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def device_index(local_rank: int, devices: int, *, shared: bool) -> int:
    """The number of a process's device among those that it sees.

    Args:
        local_rank: its number among the processes of this machine.
        devices: how many it sees; at least one.
        shared: whether processes may have a device together.

    Raises:
        RuntimeFault: there are fewer devices than processes.
    """
    if local_rank < devices:
        return local_rank
    if devices == 1:
        return 0  # perhaps another one than its neighbours'; `check_apart` knows
    if shared:
        return local_rank % devices
    raise RuntimeFault(
        f"process {local_rank} of this machine has no GPU: {devices} are visible",
        where="CUDA_VISIBLE_DEVICES",
        expected="a GPU for each process",
        hint=f"--device cpu, or {TRANSPORT}=gloo, with which stages share a GPU",
    )


def staged_by_host() -> bool:
    """Whether messages between GPUs go through main memory and gloo, because the user says so."""
    return os.environ.get(TRANSPORT) == "gloo"


def backends(device: torch.device) -> str:
    """The backends of the default process group: objects go by gloo, CUDA tensors by NCCL."""
    if device.type != "cuda" or staged_by_host():
        return "gloo"
    return "cpu:gloo,cuda:nccl"


def identity(device: torch.device) -> str:
    """What tells a GPU apart from all others, whatever number a process knows it by."""
    return str(torch.cuda.get_device_properties(device).uuid)


def check_apart(board: Board, place: Place, own: str) -> None:
    """Refuses two processes on one GPU; called by all before NCCL is used.

    Args:
        board: where the ranks find one another.
        place: of this process.
        own: the identity of its device.

    Raises:
        RuntimeFault: another process has the same device.
    """
    board.publish(f"device/{place.rank}", own)
    for rank in range(place.world_size):
        if rank != place.rank and board.read(f"device/{rank}") == own:
            raise RuntimeFault(
                f"ranks {min(rank, place.rank)} and {max(rank, place.rank)} are on one GPU ({own})",
                where="CUDA_VISIBLE_DEVICES",
                expected="a GPU for each process: NCCL cannot connect a GPU to itself",
                hint=f"fewer processes, --device cpu, or {TRANSPORT}=gloo",
            )


def check_transport(device: torch.device, options: Options) -> None:
    """Refuses torch's pipeline schedules where only gloo carries CUDA tensors.

    Raises:
        RuntimeFault: they send tensors as they are, which gloo cannot.
    """
    if device.type == "cuda" and staged_by_host() and options.mode in PIPELINES:
        raise RuntimeFault(
            f"gloo cannot send the CUDA tensors of torch's pipelines (--mode {options.mode})",
            where=f"{TRANSPORT}=gloo",
            expected=f"{TRANSPORT}=auto",
            hint="--mode exact sends through main memory",
        )
