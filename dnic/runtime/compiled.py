"""`torch.compile` of a stage's forward, where the plan asks for it.

Everything is left to torch: an uneven last batch or an evaluation compiles a second version, a
forward that cannot be captured whole runs in pieces. Compiled kernels round differently from
torch's own and draw other dropout masks, so a compiled run does not have the bits of one that is
not; from run to run it has the same ones. The first step of a run takes as long as compiling does,
and the other stages wait for it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch

from dnic.errors import RuntimeFault


def compiled_forward(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A forward as torch compiles it, when it is first called.

    Raises:
        RuntimeFault: this machine cannot compile.
    """
    check_compiler(device)
    compiled: Callable[..., Any] = torch.compile(forward)
    return compiled


def check_compiler(device: torch.device) -> None:
    """Refuses to compile for CPUs where there is no C++ compiler, before a run has begun.

    Raises:
        RuntimeFault: names the compiler that was looked for.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RuntimeFault(
            f"torch.compile needs a C++ compiler, and there is no {compiler}",
            where="plan.yaml: train: compile",
            expected="one on the PATH, or its name in the environment variable CXX",
            hint="compile: false",
        )
