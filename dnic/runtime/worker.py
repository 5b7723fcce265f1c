"""One process of a run: its place, its part of the model, its data, its trainer.

`train.py` is written against this. `entry` wraps its `main`: it reads the command line and the
bundle, joins the processes, and makes sure that the run ends the same way on all of them. The
process group is `gloo` on CPU and, beside it, NCCL for CUDA tensors; one stage per process, so the
global rank is the stage (with `--mode ddp`: the number of the copy). Restarts by torchrun
(`--max-restarts`) do not resume by themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Dataset

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Batches, read_dataset
from dnic.runtime.board import Board
from dnic.runtime.bundle import Bundle, check_stages, load_bundle
from dnic.runtime.checkpoint import find_checkpoint, read_status
from dnic.runtime.failure import Guard
from dnic.runtime.heap import keep_heap
from dnic.runtime.names import INIT_FILE, StateNames, load_initial
from dnic.runtime.options import PIPELINES, WHOLE, Options, parse_options
from dnic.runtime.place import Place, check_processes, pin_to_core
from dnic.runtime.seeds import seed_everything, stage_seed
from dnic.runtime.shared import borrowed_parameters
from dnic.runtime.stage import check_ownership

if TYPE_CHECKING:
    from dnic.runtime.loss import Loss
    from dnic.runtime.plan import Mode
    from dnic.runtime.trainer import Trainer


class Worker:
    """One process of a run.

    Attributes:
        bundle: the bundle that it runs.
        options: the command line.
        place: its rank among the processes.
        device: where its part of the model lives.
        seed: of everything random in this run.
        guard: reports its failure.
        board: what ranks tell one another outside the steps.
    """

    def __init__(self, bundle: Bundle, options: Options, place: Place, guard: Guard) -> None:
        self.bundle = bundle
        self.options = options
        self.place = place
        self.guard = guard
        self.seed = _seed(bundle, options)
        self.names = StateNames({}, {}, {})
        self.trainer_: Trainer | None = None
        self.device = _device(options, place)
        store = None
        if place.world_size > 1:
            store, _, _ = next(iter(rendezvous("env://")))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.world_size,
                timeout=timedelta(seconds=options.timeout_s),
            )
        self.board = Board(store, options.timeout_s)

    @property
    def staged(self) -> bool:
        """Whether the model is divided into stages; False with `--mode backprop` and `ddp`."""
        return self.options.mode not in WHOLE

    @property
    def replicated(self) -> bool:
        """Whether every process has a copy of the whole model: `--mode ddp`."""
        return self.options.mode == "ddp"

    def build(self, stages: ModuleType, build_model: Callable[[], nn.Module]) -> nn.Module:
        """This process's part of the model, with the initial weights, on its device.

        Args:
            stages: the emitted module, with `PLAN` and `STAGES`.
            build_model: the model file's `build_model`, or its module class.

        Returns:
            The stage; the whole model with `--mode backprop` and `ddp`.

        Raises:
            RuntimeFault: stages, model, initial weights and plan do not belong together.
        """
        check_stages(self.bundle, stages.PLAN)
        model = initial_model(self.bundle, build_model, self.seed, dropout=self.options.dropout)
        parts = [stage(model) for stage in stages.STAGES] if self.staged else [model]
        check_ownership(parts, self.bundle.plan.shared if self.staged else ())
        self.names = StateNames.of(model, parts)
        index = self.place.rank if self.staged else 0
        part: nn.Module = parts[index].to(self.device)
        seed_everything(stage_seed(self.seed, index))
        return part

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that `plan.yaml` names under `train`, for a stage's parameters.

        Parameters that another stage owns are left to that stage. A stage without parameters gets
        an optimizer that has nothing to do, which torch's own refuse.

        Raises:
            RuntimeFault: torch has no such optimizer, or it takes other options.
        """
        plan = self.bundle.plan
        others = borrowed_parameters(module, plan, self.place.rank) if self.staged else []
        return build_optimizer(plan.train.optimizer, plan.train.optimizer_options, module, others)

    def batches(
        self,
        dataset: Callable[[], Dataset[Any]],
        *,
        shuffle: bool = False,
        **loader_options: Any,
    ) -> Batches | None:
        """The batches of a data set, on the first stage's process; None on the others.

        With `--mode ddp` every process has them.

        Args:
            dataset: the model file's `train_data` or `test_data`; called where they are needed.
            shuffle: whether every epoch has another order, which follows from (seed, epoch).
            loader_options: further arguments of `DataLoader`, such as `num_workers`.
        """
        if self.place.rank != 0 and not self.replicated:
            return None
        return Batches(
            read_dataset(dataset),
            self.bundle.plan.train.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            loader_options=loader_options,
            samples=self.bundle.plan.samples,
        )

    def trainer(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> Trainer:
        """What trains the module: an `Engine`, or what `--mode` asks for.

        Args:
            module: what `build` returned.
            optimizer: over its parameters.
            loss: the model file's `loss(output, target)`: the mean over the batch, a scalar or
                several; or `runtime.own_loss`, where the model computes it.
        """
        self.trainer_ = _kind(self.options.mode)(self, module, optimizer, loss=loss)
        return self.trainer_

    def finish(self) -> None:
        """Ends a run that went well."""
        if self.trainer_ is not None:
            self.trainer_.finish()
        self.board.leave(self.place.rank, self.place.world_size)
        if dist.is_initialized():
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
    guard.run_dir = options.out
    guard.staged = options.mode not in WHOLE
    check_processes(place, bundle.plan, options.mode)
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


def build_optimizer(
    name: str, options: Any, module: nn.Module, others: Sequence[Tensor] = ()
) -> torch.optim.Optimizer:
    """A `torch.optim` class by name, over a module's parameters but `others`.

    Raises:
        RuntimeFault: torch has no such optimizer, or it takes other options.
    """
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise RuntimeFault(
            f"torch.optim has no optimizer {name!r}",
            where="plan.yaml: train: optimizer: name",
            expected="AdamW, Adam, SGD, ...",
        )
    left_out = {id(other) for other in others}
    parameters: list[Tensor] = [p for p in module.parameters() if id(p) not in left_out]
    if not parameters:
        parameters = [nn.Parameter(torch.empty(0))]
    try:
        return kind(parameters, **options)
    except (TypeError, ValueError) as error:
        raise RuntimeFault(
            f"{name} refuses its options: {error}", where="plan.yaml: train: optimizer: options"
        ) from error


def disable_dropout(model: nn.Module) -> None:
    """Makes torch's dropout modules, and those that take a `dropout` rate, pass everything on."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", 0.0)  # noqa: B010  # nn.Module types attributes as modules


def _kind(mode: Mode) -> type[Trainer]:
    # Imported where they are needed: torch's pipelines alone take a second.
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
    from dnic.runtime.engine import Engine

    return Engine


def _seed(bundle: Bundle, options: Options) -> int:
    if options.seed is not None:
        return options.seed
    if options.resume is not None:
        return read_status(find_checkpoint(options.resume)).seed
    return bundle.plan.train.seed


def _device(options: Options, place: Place) -> torch.device:
    if options.device == "cpu" or not torch.cuda.is_available():
        if options.device == "cuda":
            raise RuntimeFault("there is no CUDA device", where="--device", expected="auto, cpu")
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        raise RuntimeFault(
            f"this machine has {torch.cuda.device_count()} CUDA devices",
            expected="one for each process",
            hint="--device cpu",
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device
