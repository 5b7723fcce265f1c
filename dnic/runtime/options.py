"""The command line of `train.py`.

Standard `argparse`; what is here is the list, defaults that come from `plan.yaml`, and errors that
read like all others of dnic.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import Bundle
from dnic.runtime.chunks import LOOPED
from dnic.runtime.plan import Mode as Mode
from dnic.runtime.plan import Precision

# The undivided model; and torch's pipeline schedules over the stages.
WHOLE: tuple[Mode, ...] = ("backprop", "ddp")
PIPELINES: tuple[Mode, ...] = ("gpipe", "1f1b", *LOOPED)
# Those that cut a batch into `--microbatches`.
MICROBATCHED: tuple[Mode, ...] = (*PIPELINES, "exact", "decoupled", "oracle")
DEFAULT_MICROBATCHES = 4
DEFAULT_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Options:
    """What a run was asked for.

    Attributes:
        epochs: passes over the training data, counted from the first start of the run.
        mode: `decoupled` as planned; `stale`: in place of every predicted gradient the true one,
            as late as the window; `exact`: every interface waits for its gradient; `oracle`: heads
            run and train, but the true gradient is used; `backprop`: the undivided model in
            one process; `ddp`: the undivided model in every process, each with a share of every
            batch; `gpipe`, `1f1b`, `interleaved`, `zerobubble`, `zbv`: torch's pipeline schedules
            over the stages, the last three with several stages in a process; `alone`: every stage
            by itself on made-up tensors, which trains nothing and shows how fast it could be.
        microbatches: parts into which a batch is cut, at most; 1 with the undivided model.
        replicas: processes of each stage; None takes the plan's.
        out: folder for metrics, checkpoints and the result.
        resume: a checkpoint, or the `out` folder of an earlier run, to continue from.
        seed: of everything random; None takes the checkpoint's or the plan's.
        evaluate, checkpoint: whether the trainer's methods of these names do anything.
        max_steps: end the run after this many steps.
        record: folder for every step's loss and the final parameters.
        trace: folder for the times of the parts of the last steps.
        timeout_s: how long a rank waits for another before it gives up.
        dropout: False makes every dropout module pass its input through.
        scheduler: False leaves the learning rate as it is.
        precision: of the forward passes; None takes the plan's.
        device: `auto` takes CUDA where there is one.
    """

    epochs: int
    mode: Mode
    microbatches: int
    replicas: int | None
    out: Path
    resume: Path | None
    seed: int | None
    evaluate: bool
    checkpoint: bool
    max_steps: int | None
    record: Path | None
    trace: Path | None
    timeout_s: float
    dropout: bool
    scheduler: bool
    precision: Precision | None
    device: Literal["auto", "cpu", "cuda"]

    def total_steps(self, batches: int) -> int:
        """Steps of the whole run, whose epochs have so many batches."""
        total = self.epochs * batches
        return total if self.max_steps is None else min(total, self.max_steps)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RuntimeFault(message, where="train.py", hint="python train.py --help")


def parse_options(arguments: Sequence[str], bundle: Bundle) -> Options:
    """Reads the command line; defaults come from the bundle's plan.

    Raises:
        RuntimeFault: an option is unknown or its value is impossible.
    """
    parser = _Parser(prog="train.py", description=f"Train {bundle.plan.model}.")
    add = parser.add_argument
    add("--epochs", type=_count, default=bundle.plan.train.epochs, help="default: %(default)s")
    schedule = bundle.plan.schedule
    add("--mode", choices=get_args(Mode), default=schedule.mode, help="default: %(default)s")
    add("--microbatches", type=_some, metavar="N", help="of a batch; default: the plan's")
    add("--replicas", type=_some, metavar="N", help="of each stage; default: the plan's")
    add("--out", type=Path, help="folder of the run; default: runs/MODE beside train.py")
    add("--resume", type=Path, metavar="FOLDER", help="continue from a checkpoint or a run")
    add("--seed", type=int, help=f"default: {bundle.plan.train.seed}")
    add("--no-evaluate", dest="evaluate", action="store_false", help="train only")
    add("--no-checkpoint", dest="checkpoint", action="store_false", help="write no checkpoints")
    add("--max-steps", type=_count, help="end after this many steps")
    add("--record", type=Path, metavar="FOLDER", help="write every loss, and the final parameters")
    add("--trace", type=Path, metavar="FOLDER", help="write when each part of the last steps ran")
    add(
        "--timeout",
        dest="timeout_s",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="longest wait for another rank; default: %(default).0f",
    )
    add("--no-dropout", dest="dropout", action="store_false", help="dropout modules do nothing")
    add(
        "--no-scheduler",
        dest="scheduler",
        action="store_false",
        help="leave the learning rate as it is",
    )
    add("--precision", choices=get_args(Precision), help=f"default: {bundle.plan.train.precision}")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    values = parser.parse_args(arguments)
    if values.out is None:
        values.out = bundle.folder / "runs" / values.mode
    if values.mode == "alone":
        values.evaluate = values.checkpoint = False  # it trains nothing
    if values.mode not in MICROBATCHED:
        values.microbatches = 1
    elif values.microbatches is None and values.mode not in PIPELINES:
        # Torch's pipelines need some; that such a plan has some says nothing of other modes.
        values.microbatches = 1 if schedule.mode in PIPELINES else schedule.microbatches
    elif values.microbatches is None:
        # A plan for another mode says 1, which is no pipeline.
        least = max(DEFAULT_MICROBATCHES, bundle.stages)
        values.microbatches = schedule.microbatches if schedule.microbatches > 1 else least
    return Options(**vars(values))


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _some(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a time")
    return number
