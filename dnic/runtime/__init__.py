"""What a bundle runs on: the engine, its links, heads, checkpoints and metrics.

Imports nothing of the compiler, so a machine that only trains needs torch and this. `train.py` and
`stages.py` use the names below; `dnic train`, `export` and `verify` use `launch`,
`load_full_state_dict` and `read_record`.
"""

from dnic.runtime.bundle import structure_digest
from dnic.runtime.checkpoint import load_full_state_dict
from dnic.runtime.engine import Engine
from dnic.runtime.launch import LaunchResult, launch, torchrun_command
from dnic.runtime.loss import own_loss
from dnic.runtime.record import Record, read_record
from dnic.runtime.stage import Stage
from dnic.runtime.worker import Worker, entry

__all__ = [
    "Engine",
    "LaunchResult",
    "Record",
    "Stage",
    "Worker",
    "entry",
    "launch",
    "load_full_state_dict",
    "own_loss",
    "read_record",
    "structure_digest",
    "torchrun_command",
]
