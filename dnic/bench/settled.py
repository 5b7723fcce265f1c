"""A bundle whose interfaces do not warm up: what most of a long training looks like, from step 1.

A synthetic interface starts with steps that wait for the true gradient, up to 200 of them. In a
run of a few seconds they would be a large part, or all of it; and heads that have not learnt yet
are what a guard is for. What is measured is therefore a copy whose plan says `warmup_steps: 0` and
`guard: false`; the large files are links to the bundle's own.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import yaml

from dnic.runtime.bundle import PLAN_FILE

_LEFT = ("runs", "__pycache__", PLAN_FILE)


def settled(bundle: Path, folder: Path) -> Path:
    """Write the copy.

    Args:
        bundle: a bundle.
        folder: where to; does not exist.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True)
    for path in bundle.iterdir():
        if path.suffix == ".py":
            copyfile(path, folder / path.name)  # train.py finds its bundle where it lies itself
        elif path.name not in _LEFT:
            (folder / path.name).symlink_to(path.resolve())
    plan = yaml.safe_load((bundle / PLAN_FILE).read_text(encoding="utf-8"))
    for interface in plan["interfaces"]:
        interface["warmup_steps"] = 0
        interface["guard"] = False
    (folder / PLAN_FILE).write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return folder
