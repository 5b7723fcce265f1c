"""No training step makes the host wait for its device: nothing in it needs a number.

On the CPU such calls cost nothing, so they are counted here, those of torch's own functions too.
What a step shows to a person (live figures) is outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
Run = Callable[..., Any]

# Optimizers of torch count their steps in tensors on the host, so they may look at them: not SGD.
SGD = {"name": "SGD", "options": {"lr": 0.05, "momentum": 0.9}}
COUNTING = """
import contextlib
import json
import os
import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnic.runtime.alone import Alone
from dnic.runtime.backprop import Backprop
from dnic.runtime.engine import Engine
from dnic.runtime.late_engine import LateEngine
from dnic.runtime.trainer import Trainer

SYNCHRONISING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "allclose"
}
FOUND = []
STEPS = []


def found(name):
    stack = traceback.extract_stack()
    # Data are read in main memory, wherever the model is.
    if not any(frame.filename.endswith("runtime/batches.py") for frame in stack):
        FOUND.append(f"{name} at {stack[-5].filename}:{stack[-5].lineno}")


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        masks = [a for a in args[1] if a is not None] if name in ("index", "index_put_") else []
        if name in SYNCHRONISING or any(mask.dtype == torch.bool for mask in masks):
            found(name)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted():
    names = ("item", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy", "tolist")
    kept = {name: getattr(Tensor, name) for name in names}
    for name, method in kept.items():
        def call(tensor, *args, name=name, method=method, **kwargs):
            found(name)
            return method(tensor, *args, **kwargs)
        setattr(Tensor, name, call)
    try:
        with Watch():
            yield
    finally:
        for name, method in kept.items():
            setattr(Tensor, name, method)


def watched(kind, name):
    method = kind.__dict__.get(name)
    if method is None:
        return
    def run(self, *args, **kwargs):
        STEPS.append(name)
        with counted():
            {extra}
            return method(self, *args, **kwargs)
    setattr(kind, name, run)


for kind in (Engine, LateEngine, Backprop, Alone, Trainer):
    for name in ("_step", "_settle", "_drain", "_count_loss"):
        watched(kind, name)

"""
REPORT = """
    content = json.dumps({"steps": len(STEPS), "found": sorted(set(FOUND))})
    Path(__file__).with_name(f"waits{os.environ['RANK']}.json").write_text(content)
"""


def counting(extra: str = "pass") -> Callable[[str, str], str]:
    def edit(name: str, text: str) -> str:
        if name != "train.py":
            return text
        return COUNTING.replace("{extra}", extra) + text.rstrip() + REPORT

    return edit


def read_waits(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("waits*.json"))]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("mlp3", ("--microbatches=4",)),
        ("conv2", ()),
        ("skip3", ()),
        ("skip3", ("--mode=exact",)),
        ("mlp2", ("--mode=stale",)),
        ("mlp2", ("--mode=alone",)),
    ],
)
def test_no_step_waits_for_the_device(
    bundle: Make, run_ranks: Run, kind: str, arguments: tuple[str, ...]
) -> None:
    train = {"batch_size": 16, "epochs": 1, "seed": 3, "optimizer": SGD, "clip_norm": 1.0}
    folder = bundle(kind, plan_keys={"train": train}, edit=counting())
    run_ranks(folder, int(kind[-1]), "--no-checkpoint", *arguments)
    waits = read_waits(folder)
    assert [rank["found"] for rank in waits] == [[]] * int(kind[-1])
    assert all(rank["steps"] >= 7 for rank in waits)


@pytest.mark.processes
@pytest.mark.parametrize("extra", ["float(torch.ones(()))", "torch.ones(3)[torch.ones(3) > 0]"])
def test_what_waits_is_counted(bundle: Make, run_ranks: Run, extra: str) -> None:
    folder = bundle("mlp2", edit=counting(extra))
    run_ranks(folder, 2, "--no-checkpoint", "--no-evaluate", "--epochs=1")
    assert all(rank["found"] for rank in read_waits(folder))
