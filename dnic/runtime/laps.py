"""When the parts of the last steps of a run began and ended (`--trace FOLDER`), for pictures.

Each process writes its own file, anew after every epoch. The times are those of the machine's
monotonic clock, which all processes of one machine share; those of several machines cannot be laid
side by side. What is drawn from them: `dnic bench --trace`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dnic.errors import RuntimeFault
from dnic.runtime.metrics import replace_text
from dnic.runtime.stopwatch import Lap

TRACED_STEPS = 50


def write_laps(folder: Path, rank: int, laps: Sequence[Lap]) -> None:
    """Writes one process's laps."""
    content = [[lap.part, lap.start_s, lap.end_s, lap.wait_s] for lap in laps]
    replace_text(folder / f"laps-rank{rank}.json", json.dumps(content) + "\n")


def read_laps(folder: Path) -> dict[int, list[Lap]]:
    """The laps of every process, by rank.

    Raises:
        RuntimeFault: the folder holds none.
    """
    files = {int(path.stem.removeprefix("laps-rank")): path for path in folder.glob("laps-rank*")}
    if not files:
        raise RuntimeFault("there are no laps here", where=str(folder), expected="laps-rank0.json")
    return {
        rank: [Lap(*lap) for lap in json.loads(files[rank].read_text(encoding="utf-8"))]
        for rank in sorted(files)
    }
