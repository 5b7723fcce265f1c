"""How long a step takes, and what it needs, for every way to train: numbers in, numbers out."""

from dnic.schedule.decoupled import decoupled
from dnic.schedule.orders import fills_rounds
from dnic.schedule.parallel import data_parallel, one_device
from dnic.schedule.pipeline import (
    MOST_PASSES,
    eager_one_f_one_b,
    gpipe,
    interleaved,
    naive,
    one_f_one_b,
    zero_bubble,
)
from dnic.schedule.work import CutWork, Machine, Outcome, Source, StageWork, joined

__all__ = [
    "MOST_PASSES",
    "CutWork",
    "Machine",
    "Outcome",
    "Source",
    "StageWork",
    "data_parallel",
    "decoupled",
    "eager_one_f_one_b",
    "fills_rounds",
    "gpipe",
    "interleaved",
    "joined",
    "naive",
    "one_device",
    "one_f_one_b",
    "zero_bubble",
]
