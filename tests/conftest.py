"""What every test relies on: one thread, the same random numbers on every run, no time limits."""

from __future__ import annotations

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Read when torch is imported.

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A slow machine must not fail a test, and the same commit must always give the same answer.
settings.register_profile("dnic", deadline=None, derandomize=True)
settings.load_profile("dnic")


def pytest_runtest_setup() -> None:
    """Seed every generator; a hook, because hypothesis refuses fixtures of a single test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's folder."""
    return Path(__file__).parent.parent
