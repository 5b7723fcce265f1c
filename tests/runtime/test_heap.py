"""A process that trains keeps the memory of one step for the next."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Tensors of 24 MB, freed in every round: page faults of the later rounds.
ROUNDS = """
import json, resource, sys
import torch
from dnic.runtime.heap import keep_heap
kept = keep_heap()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def once():
    tensors = [torch.ones(6_000_000) for _ in range(4)]
for _ in range(3):
    once()
before = faults()
for _ in range(5):
    once()
print(json.dumps([kept, faults() - before]))
"""


def page_faults(**environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = json.loads(done.stdout)
    return kept, faults


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    kept, few = page_faults()
    assert kept
    told_otherwise, many = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not told_otherwise
    # 4 tensors of 24 MB are 23,437 pages of 4 KiB.
    assert few < 1000 < many
