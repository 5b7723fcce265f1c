"""The pictures in a bundle: `partition.dot` always, `partition.svg` where a renderer works."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dnic.graph.drawing import can_render
from dnic.partition.plan import Plan
from dnic.report.partition import draw_plan


def picture_files(plan: Plan) -> dict[str, bytes]:
    """Name and content of each picture."""
    names = ["partition.dot", *(["partition.svg"] if can_render() else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            draw_plan(plan, Path(folder) / name)
        return {name: (Path(folder) / name).read_bytes() for name in names}
