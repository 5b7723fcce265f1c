"""One process of a run: its place, its part of the model, its data, its trainer.

`train.py` is written against this. `entry` wraps its `main`: it reads the command line and the
bundle, joins the processes, and makes sure that the run ends the same way on all of them. The
process group is `gloo` on CPU and, beside it, NCCL for CUDA tensors (`dnic.runtime.devices`). A
process runs one stage, of which others may hold replicas (with `--mode ddp`: one copy of the
model), or several that a schedule deals out to it (`dnic.runtime.chunks`). Restarts by torchrun
(`--max-restarts`) do not resume by themselves.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Dataset

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Batches, read_dataset
from dnic.runtime.board import Board
from dnic.runtime.bundle import Bundle, check_stages, load_bundle, with_replicas
from dnic.runtime.checkpoint import find_checkpoint, read_status
from dnic.runtime.chunks import LOOPED, held_stages
from dnic.runtime.clipping import connect_clipping, is_joint, parameter_share
from dnic.runtime.devices import (
    backends,
    check_apart,
    check_transport,
    choose_device,
    identity,
    prepare_cuda,
)
from dnic.runtime.failure import Guard
from dnic.runtime.forward import prepare_model, prepare_stage
from dnic.runtime.groups import warm_up
from dnic.runtime.heap import keep_heap
from dnic.runtime.held import HeldStages, stages_in
from dnic.runtime.lr import LearningRate, build_scheduler
from dnic.runtime.names import INIT_FILE, StateNames, load_initial
from dnic.runtime.optimizer import build_optimizer
from dnic.runtime.options import PIPELINES, WHOLE, Options, parse_options
from dnic.runtime.place import Place, check_processes, pin_to_core
from dnic.runtime.replicas import Replicas, connect_replicas
from dnic.runtime.seeds import seed_everything, stage_seed
from dnic.runtime.setting import check_replicated
from dnic.runtime.sharding import check_sharding, shard_stage, shards
from dnic.runtime.shared import borrowed_parameters
from dnic.runtime.stage import check_ownership
from dnic.runtime.streams import Streams

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from dnic.runtime.loss import Loss
    from dnic.runtime.plan import Interval
    from dnic.runtime.trainer import Trainer


class Worker:
    """One process of a run.

    Attributes:
        bundle: the bundle that it runs.
        options: the command line.
        place: its rank among the processes.
        device: where its part of the model lives.
        streams: of that device.
        seed: of everything random in this run.
        guard: reports its failure.
        board: what ranks tell one another outside the steps.
        held: the numbers of the stages that it holds.
        replicas: the processes that share its stage.
        parameter_share: this process's part of all parameters that train, 0 to 1.
    """

    def __init__(self, bundle: Bundle, options: Options, place: Place, guard: Guard) -> None:
        self.bundle = bundle
        self.options = options
        self.place = place
        self.guard = guard
        self.seed = _seed(bundle, options)
        self.names = StateNames({}, {}, {})
        stages = len(bundle.plan.stages)
        self.held = held_stages(options.mode, stages, place.stages, place.stage)
        self.parameter_share = 1.0
        self.trainer_: Trainer | None = None
        self._scheduler: LRScheduler | None = None
        self.device = choose_device(options, place)
        self.streams = Streams.of(self.device)
        check_transport(self.device, options)
        store = None
        if place.world_size > 1:
            store, _, _ = next(iter(rendezvous("env://")))
        self.board = Board(store, options.timeout_s)
        if store is not None:
            if "nccl" in backends(self.device):
                check_apart(self.board, place, identity(self.device))
            dist.init_process_group(
                backends(self.device),
                store=store,
                rank=place.rank,
                world_size=place.world_size,
                timeout=timedelta(seconds=options.timeout_s),
            )
        self.replicas = connect_replicas(place, self.device)

    @property
    def staged(self) -> bool:
        """Whether the model is divided into stages; False with `--mode backprop` and `ddp`."""
        return self.options.mode not in WHOLE

    @property
    def replicated(self) -> bool:
        """Whether every process has a copy of the whole model: `--mode ddp`."""
        return self.options.mode == "ddp"

    @property
    def sharded(self) -> bool:
        """Whether the replicas of a stage hold a part of it each."""
        return shards(self.bundle.plan, self.options.mode)

    @property
    def written(self) -> tuple[int, ...]:
        """The stages whose entries this process writes: of copies of the model the first does."""
        return () if self.replicated and self.place.rank else self.held

    def build(self, stages: ModuleType, build_model: Callable[[], nn.Module]) -> nn.Module:
        """This process's part of the model, with the initial weights, on its device.

        Its forward is compiled, recomputed and in the precision that `plan.yaml` says.

        Args:
            stages: the emitted module, with `PLAN` and `STAGES`.
            build_model: the model file's `build_model`, or its module class.

        Returns:
            The stage, or several as one module; the whole model with `--mode backprop` and `ddp`.

        Raises:
            RuntimeFault: stages, model, initial weights and plan do not belong together.
        """
        check_stages(self.bundle, stages.PLAN)
        model = initial_model(self.bundle, build_model, self.seed, dropout=self.options.dropout)
        parts = [stage(model) for stage in stages.STAGES] if self.staged else [model]
        check_ownership(parts, self.bundle.plan.shared if self.staged else ())
        self.names = StateNames.of(model, parts)
        self.parameter_share = sum(parameter_share(parts, index) for index in self.held)
        held = {index: parts[index].to(self.device) for index in self.held}
        for index, part in held.items():
            if self.staged:
                prepare_stage(part, self.bundle.plan, index, self.device)
            else:
                prepare_model(part, self.bundle.plan, self.device)
        first = self.held[0]
        if self.sharded and self.replicas.mesh is not None:
            shard_stage(held[first], self.replicas.mesh)
        seed_everything(stage_seed(self.seed, first))
        return held[first] if len(held) == 1 else HeldStages(held)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that `plan.yaml` names under `train`, for a stage's parameters.

        Parameters that another stage owns are left to that stage. A stage without parameters gets
        an optimizer that has nothing to do, which torch's own refuse.

        Raises:
            RuntimeFault: torch has no such optimizer, or it takes other options or parameters.
        """
        plan = self.bundle.plan
        others = [
            parameter
            for index, stage in stages_in(module, self.held).items()
            if self.staged
            for parameter in borrowed_parameters(stage, plan, index)
        ]
        return build_optimizer(plan.train.optimizer, plan.train.optimizer_options, module, others)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
        """The learning-rate scheduler that `plan.yaml` names under `train`; None without one.

        Asked twice for the same optimizer, it is the same scheduler.

        Raises:
            RuntimeFault: torch has no such scheduler, or it takes other options.
        """
        plan = self.bundle.plan.train.scheduler
        if plan is None or not self.options.scheduler:
            return None
        if self._scheduler is None or self._scheduler.optimizer is not optimizer:
            self._scheduler = build_scheduler(plan, optimizer)
        return self._scheduler

    def batches(
        self,
        dataset: Callable[[], Dataset[Any]],
        *,
        shuffle: bool = False,
        **loader_options: Any,
    ) -> Batches | None:
        """The batches of a data set, on the first stage's processes; None on the others.

        With `--mode ddp` every process has them.

        Args:
            dataset: the model file's `train_data` or `test_data`; called where they are needed.
            shuffle: whether every epoch has another order, which follows from (seed, epoch).
            loader_options: further arguments of `DataLoader`, such as `num_workers`.
        """
        if self.place.stage != 0 and not self.replicated:
            return None
        return Batches(
            read_dataset(dataset),
            self.bundle.plan.train.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            loader_options=loader_options,
            samples=self.bundle.plan.samples,
            pinned=self.device.type == "cuda",
        )

    def trainer(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Loss,
        scheduler: LRScheduler | None = None,
        interval: Interval | None = None,
    ) -> Trainer:
        """What trains the module: an `Engine`, or what `--mode` asks for.

        Args:
            module: what `build` returned.
            optimizer: over its parameters.
            loss: the model file's `loss(output, target)`: the mean over the batch, a scalar or
                several; or `runtime.own_loss`, where the model computes it.
            scheduler: of the optimizer's learning rate; None: what `plan.yaml` names.
            interval: after what it is stepped; None: as `plan.yaml` says, else every epoch.

        Raises:
            RuntimeFault: the planned scheduler cannot be made, or needs what this run lacks.
        """
        planned = self.bundle.plan.train.scheduler
        rate = LearningRate(
            scheduler if scheduler is not None else self.scheduler(optimizer),
            interval or (planned.interval if planned is not None else "epoch"),
        )
        if rate.needs_evaluation and not self.options.evaluate:
            raise RuntimeFault(
                "ReduceLROnPlateau follows the loss of evaluations",
                where="--no-evaluate",
                hint="--no-scheduler",
            )
        if self._joins_all():
            warm_up(self.device)
        trainer = _kind(self)(self, module, optimizer, loss=loss)
        trainer.learning_rate = rate
        trainer.clipping = connect_clipping(self, module)
        self.trainer_ = trainer
        return trainer

    def _joins_all(self) -> bool:
        """Whether all ranks at once communicate, or any two, by the default process group."""
        mode, plan = self.options.mode, self.bundle.plan
        clips = plan.train.clip_norm is not None and self.staged and is_joint(plan, mode)
        return dist.is_initialized() and (clips or mode in PIPELINES or mode == "ddp")

    def finish(self) -> None:
        """Ends a run that went well."""
        if self.trainer_ is not None:
            self.trainer_.finish()
        self.replicas = Replicas()
        self.board.leave(self.place.rank, self.place.world_size)
        if dist.is_initialized():
            gc.collect()  # What lies in cycles may hold the group, and with it its threads.
            dist.destroy_process_group()


def entry(main: Callable[[Worker], None]) -> Callable[[], None]:
    """Makes a `main(worker)` of `train.py` into what torchrun starts.

    The bundle is the folder that holds the file of `main`. A mistake of the user ends the run with
    its message and status 2, another exception with the traceback of the rank that raised it and
    status 1; `SystemExit` keeps its status.
    """
    folder = Path(main.__code__.co_filename).resolve().parent

    def run() -> None:
        place = Place.from_environment()
        with Guard(place) as guard:
            worker = start(folder, sys.argv[1:], place, guard)
            main(worker)
            worker.finish()

    return run


def start(folder: Path, arguments: list[str], place: Place, guard: Guard) -> Worker:
    """Reads the bundle and the command line, checks them, and joins the other processes.

    Raises:
        RuntimeFault: the bundle is broken, an option wrong, or the number of processes.
    """
    pin_to_core(place)
    keep_heap()
    torch.set_flush_denormal(True)
    bundle = load_bundle(folder)
    options = parse_options(arguments, bundle)
    if options.precision is not None:
        train = replace(bundle.plan.train, precision=options.precision)
        bundle = replace(bundle, plan=replace(bundle.plan, train=train))
    bundle = with_replicas(bundle, options.replicas)
    place = guard.place = replace(place, replicas=bundle.plan.replicas(options.mode))
    guard.run_dir = options.out
    guard.staged = options.mode not in (*WHOLE, *LOOPED)
    check_processes(place, bundle.plan, options.mode)
    check_sharding(bundle.plan, options.mode)
    check_replicated(bundle.plan, options.mode)
    prepare_cuda(options, place)
    return Worker(bundle, options, place, guard)


def initial_model(
    bundle: Bundle, build_model: Callable[[], nn.Module], seed: int, *, dropout: bool
) -> nn.Module:
    """The whole model as training starts with it, the same in every process.

    Its weights are those of `init.safetensors`; where the plan says `weights: seed`, those that
    `build_model()` draws.

    Args:
        bundle: the bundle.
        build_model: the model file's, or its module class.
        seed: of the run.
        dropout: False makes every dropout module pass its input through.

    Raises:
        RuntimeFault: the initial weights are of another model.
    """
    seed_everything(seed)
    model = build_model()
    if bundle.plan.weights == "file":
        load_initial(model, str(bundle.folder / INIT_FILE))
    if not dropout:
        disable_dropout(model)
    return model


def disable_dropout(model: nn.Module) -> None:
    """Makes torch's dropout modules, and those that take a `dropout` rate, pass everything on."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", 0.0)  # noqa: B010  # nn.Module types attributes as modules


def _kind(worker: Worker) -> type[Trainer]:
    # Imported where they are needed: torch's pipelines alone take a second.
    mode = worker.options.mode
    if mode == "backprop":
        from dnic.runtime.backprop import Backprop

        return Backprop
    if mode == "ddp":
        from dnic.runtime.data_parallel import DataParallel

        return DataParallel
    if mode in PIPELINES:
        from dnic.runtime.pipeline import Pipelined

        return Pipelined
    if mode == "alone":
        from dnic.runtime.alone import Alone

        return Alone
    from dnic.runtime.crossing import crossings
    from dnic.runtime.engine import Engine
    from dnic.runtime.late_engine import LateEngine

    late = crossings(worker.bundle.plan, mode).late[worker.place.stage]
    return LateEngine if late else Engine


def _seed(bundle: Bundle, options: Options) -> int:
    if options.seed is not None:
        return options.seed
    if options.resume is not None:
        return read_status(find_checkpoint(options.resume)).seed
    return bundle.plan.train.seed
