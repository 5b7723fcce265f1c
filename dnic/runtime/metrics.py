"""Figures of an epoch: gathered once at its end, live ones in between without coupling the ranks.

`metrics.jsonl` in the run's folder gets one record per epoch, written by rank 0; `result.json` the
final one. Live figures are last values that every rank publishes now and then and rank 0 reads
when it redraws; a rank never waits for another's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.board import Board
from dnic.runtime.stopwatch import Stopwatch

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
LIVE_INTERVAL_S = 0.5


@dataclass
class EpochFigures:
    """What one rank counts during an epoch.

    Attributes:
        samples: training samples.
        seconds: from the first batch to the last gradient, evaluation excluded.
        waited_s: the part of it spent waiting for other ranks; None where torch waits.
        loss_sum: sum over the samples (last stage only).
        interfaces: figures of each interface that this rank sends over, by name.
        step_us: `median`, `min` and `mean` of this rank's steps, in microseconds.
        parts_us: mean microseconds of each part of a step.
        sent_bytes: that this rank sent during the epoch; None where torch sends.
        in_flight_bytes: most that messages under way can take of this rank's memory.
    """

    samples: int = 0
    seconds: float = 0.0
    waited_s: float | None = 0.0
    loss_sum: Tensor | float = 0.0
    interfaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    step_us: dict[str, float] | None = None
    parts_us: dict[str, float] = field(default_factory=dict)
    sent_bytes: int | None = None
    in_flight_bytes: int | None = None

    def timed(self, watch: Stopwatch) -> None:
        """Takes the times of an epoch that is over."""
        self.step_us, self.parts_us = watch.step_us(), watch.parts_us()

    def to_json(self, *, last: bool) -> dict[str, Any]:
        """For the board; waits for the device."""
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "waited_s": self.waited_s,
            "train_loss": float(self.loss_sum) / self.samples if last and self.samples else None,
            "interfaces": self.interfaces,
            "memory_bytes": peak_memory_bytes(),
            "sent_bytes": self.sent_bytes,
            "in_flight_bytes": self.in_flight_bytes,
            "step_us": self.step_us,
            "parts_us": self.parts_us,
        }


def merged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of an epoch from what every rank published, in the order of the ranks.

    Of an interface that replicas send over the first one's figures count.
    """
    seconds = max(figures["seconds"] for figures in ranks)
    samples = ranks[-1]["samples"]
    interfaces: dict[str, Any] = {}
    for figures in ranks:
        for name, row in figures["interfaces"].items():
            interfaces.setdefault(name, row)
    steps = [figures["step_us"] for figures in ranks if figures["step_us"] is not None]
    return {
        "train_loss": ranks[-1]["train_loss"],
        "samples": samples,
        "train_s": seconds,
        "samples_per_s": samples / seconds if seconds else None,
        "interfaces": interfaces,
        "waited_share": [_share(figures["waited_s"], figures["seconds"]) for figures in ranks],
        "memory_bytes": [figures["memory_bytes"] for figures in ranks],
        "in_flight_bytes": [figures["in_flight_bytes"] for figures in ranks],
        "sent_bytes": [figures["sent_bytes"] for figures in ranks],
        # The rank that takes longest holds the others.
        "step_us": max(steps, key=lambda step: step["mean"], default=None),
        "rank_step_us": [figures["step_us"] for figures in ranks],
        "parts_us": [figures["parts_us"] for figures in ranks],
    }


def _share(part: float | None, whole: float) -> float | None:
    if part is None:
        return None
    return part / whole if whole else 0.0


def peak_memory_bytes() -> int:
    """Most memory that this process has held: CUDA's where it is used, else the whole process's.

    On CUDA what torch has given out on the process's device; NCCL's own buffers are not in it.
    """
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if cuda:
        return int(cuda)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MetricsFile:
    """`metrics.jsonl`: one JSON object per epoch."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE

    def start(self, epochs_done: int) -> None:
        """Begins a new file; a resumed run keeps the records of the epochs that it builds on."""
        kept = [record for record in read_metrics(self._path) if record["epoch"] <= epochs_done]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        replace_text(self._path, text)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a line that was cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class LiveFigures:
    """Last values of a rank, for the display.

    Args:
        board: where they are published.
        rank: this rank.
    """

    def __init__(self, board: Board, rank: int) -> None:
        self._board = board
        self._rank = rank
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time to publish, or to look, again."""
        return time.monotonic() >= self._next

    def publish(self, figures: dict[str, Any]) -> None:
        """Publishes this rank's figures."""
        self._next = time.monotonic() + LIVE_INTERVAL_S
        self._board.publish(f"live/{self._rank}", figures)

    def look(self, ranks: int) -> dict[str, Any]:
        """Everything that the ranks have published so far, in one dictionary."""
        self._next = time.monotonic() + LIVE_INTERVAL_S
        seen: dict[str, Any] = {"interfaces": {}}
        for rank in range(ranks):
            figures = self._board.peek(f"live/{rank}") or {}
            seen["interfaces"].update(figures.pop("interfaces", {}))
            seen.update(figures)
        return seen
