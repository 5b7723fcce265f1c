"""Which GPU a process gets, and what is refused, where torch is told that there are some."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from dnic.errors import RuntimeFault
from dnic.runtime import devices
from dnic.runtime.board import Board
from dnic.runtime.place import Place


def options(device: str = "auto", mode: str = "decoupled") -> Any:
    return SimpleNamespace(device=device, mode=mode)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Makes torch believe in two GPUs; the devices that are made current."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv(devices.TRANSPORT, raising=False)
    return chosen


def test_the_local_rank_is_the_device(gpus: list[torch.device]) -> None:
    place = Place(rank=5, local_rank=1, world_size=8)
    assert devices.choose_device(options(), place) == torch.device("cuda", 1)
    assert gpus == [torch.device("cuda", 1)]
    assert devices.choose_device(options("cpu"), place) == torch.device("cpu")
    assert len(gpus) == 1


def test_more_processes_than_devices(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(rank=3, local_rank=3, world_size=4)
    with pytest.raises(RuntimeFault, match="process 3 of this machine has no GPU: 2 are visible"):
        devices.choose_device(options(), place)
    monkeypatch.setenv(devices.TRANSPORT, "gloo")
    assert devices.choose_device(options(), place) == torch.device("cuda", 1)


def test_a_scheduler_may_show_every_process_one_device(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place = Place(rank=3, local_rank=3, world_size=4)
    assert devices.choose_device(options(), place) == torch.device("cuda", 0)


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device(options(), Place()) == torch.device("cpu")
    with pytest.raises(RuntimeFault, match="there is no CUDA device"):
        devices.choose_device(options("cuda"), Place())


def compared(identities: list[str]) -> list[str]:
    """What each of several ranks says of the devices that they have."""
    store, said = HashStore(), [""] * len(identities)

    def rank(number: int) -> None:
        board = Board(store, 5.0)
        try:
            devices.check_apart(
                board, Place(rank=number, world_size=len(identities)), identities[number]
            )
        except RuntimeFault as fault:
            said[number] = fault.problem

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(identities))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_two_ranks_on_one_gpu_are_refused_by_both() -> None:
    assert compared(["GPU-a", "GPU-b", "GPU-c"]) == ["", "", ""]
    said = compared(["GPU-a", "GPU-b", "GPU-a"])
    assert said == ["ranks 0 and 2 are on one GPU (GPU-a)", "", said[0]]


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.TRANSPORT, raising=False)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert devices.backends(cpu) == "gloo"
    assert devices.backends(gpu) == "cpu:gloo,cuda:nccl"
    devices.check_transport(gpu, options(mode="1f1b"))
    monkeypatch.setenv(devices.TRANSPORT, "gloo")
    assert devices.backends(gpu) == "gloo"
    devices.check_transport(gpu, options())
    devices.check_transport(cpu, options(mode="1f1b"))
    with pytest.raises(RuntimeFault, match="gloo cannot send the CUDA tensors"):
        devices.check_transport(gpu, options(mode="1f1b"))


def test_what_cuda_reads_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"CUDA_MODULE_LOADING": "LAZY"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices.prepare_cuda(options("cpu"), Place(world_size=2))
    devices.prepare_cuda(options(), Place(world_size=1))
    assert environment == {"CUDA_MODULE_LOADING": "LAZY"}
    devices.prepare_cuda(options(), Place(world_size=2))
    assert environment["CUDA_MODULE_LOADING"] == "LAZY"  # the user's own wins
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
