"""Where a process stands among the processes of a run, as torchrun tells it.

Stages may have replicas. Those of one stage have neighbouring ranks, so that on several machines
they share one and the stages cross the slow link; one replica of each stage together is a column,
a whole pipeline of its own:

    rank = stage * replicas + replica        2 stages of 2 replicas    column 0   column 1
                                             stage 0                   rank 0     rank 1
                                             stage 1                   rank 2     rank 3

Also the one check that must come before any communication: stages run on as many processes as
there are replicas of them, or on a part of that where a schedule deals them out, backprop in one,
and data parallelism (`ddp`) on any number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from dnic.errors import RuntimeFault
from dnic.runtime.chunks import LOOPED, fitting_processes
from dnic.runtime.options import PIPELINES
from dnic.runtime.plan import Mode, Plan


@dataclass(frozen=True)
class Place:
    """One process of a run.

    Attributes:
        rank: its number among all processes.
        local_rank: its number among the processes of this machine.
        world_size: number of processes.
        torchrun: whether torchrun (or something that sets the same variables) started it.
        run_id: tells this start apart from earlier ones on the same machine.
        replicas: processes of each stage; 1 where the model is not divided.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    torchrun: bool = False
    run_id: str = ""
    replicas: int = 1

    @property
    def stage(self) -> int:
        """The stage that it runs; in `ddp` the number of its copy of the model."""
        return self.rank // self.replicas

    @property
    def replica(self) -> int:
        """Its number among the processes of its stage."""
        return self.rank % self.replicas

    @property
    def stages(self) -> int:
        """Number of stages."""
        return self.world_size // self.replicas

    def rank_of(self, stage: int) -> int:
        """The process of another stage in its own column."""
        return stage * self.replicas + self.replica

    def tag_of(self, link: int) -> int:
        """The tag of one of a column's links, unlike those of other columns."""
        return link * self.replicas + self.replica

    @classmethod
    def from_environment(cls) -> Place:
        """Reads torchrun's environment variables."""
        env = os.environ
        if "RANK" not in env or "WORLD_SIZE" not in env:
            return cls(run_id=str(os.getpid()))
        return cls(
            rank=int(env["RANK"]),
            local_rank=int(env.get("LOCAL_RANK", env["RANK"])),
            world_size=int(env["WORLD_SIZE"]),
            torchrun=True,
            run_id="-".join(
                env.get(name, "")
                for name in ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
            ),
        )


def check_processes(place: Place, plan: Plan, mode: Mode) -> None:
    """Refuses a number of processes that does not fit the bundle and the mode.

    Raises:
        RuntimeFault: with the command that is right.
    """
    stages = len(plan.stages)
    asked = "" if mode == plan.schedule.mode else f" --mode {mode}"
    if mode == "backprop":
        if place.world_size > 1:
            raise RuntimeFault(
                f"--mode backprop runs in one process; torchrun started {place.world_size}",
                hint=f"python train.py{asked}",
            )
        return
    if mode == "ddp":
        return
    if mode in PIPELINES and stages == 1:
        raise RuntimeFault(
            f"--mode {mode} needs stages; this bundle has one",
            hint="--mode backprop, or --mode ddp on several processes",
        )
    replicas = plan.replicas(mode)
    fitting = fitting_processes(mode, stages) if mode in LOOPED else (stages * replicas,)
    if not fitting:
        least = "2 stages for each of 2 processes or more"
        raise RuntimeFault(
            f"--mode {mode} needs {least}; this bundle has {stages} stages",
            hint="partition.stages in the spec, or --mode zerobubble, which takes one for each",
        )
    if place.world_size in fitting:
        return
    started = (
        f"torchrun started {place.world_size} process{'es' if place.world_size > 1 else ''}"
        if place.torchrun
        else "this process was started without torchrun"
    )
    of_replicas = f" of {replicas} replicas each" if replicas > 1 else ""
    raise RuntimeFault(
        f"this bundle has {stages} stages{of_replicas}; {started}",
        expected=f"{' or '.join(map(str, fitting))} processes, which hold the same number each"
        if mode in LOOPED
        else f"one process for each {'stage' if replicas == 1 else 'replica of each stage'}",
        hint=f"torchrun --standalone --nproc-per-node={plan.processes(mode)} train.py{asked}",
    )


def pin_to_core(place: Place) -> None:
    """Binds this process to one core, by its local rank, with one thread (`DNIC_PIN=1`)."""
    if os.environ.get("DNIC_PIN") != "1":
        return
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[place.local_rank % len(allowed)]})
