"""Memory that a training step freed is kept for the next one.

glibc gives large blocks, and the top of the heap, back to the system as soon as they are free; the
next step asks for the same again and pays a page fault for every 4 KiB of it. That took 3 to 8% of
a convolutional net's step here, and came and went with the order in which tensors were freed, so
that equal runs differed. `jemalloc` or `tcmalloc` by LD_PRELOAD do the same; this needs nothing to
be installed. CPU only: torch keeps CUDA's memory itself.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_heap() -> bool:
    """Makes this process keep freed memory, unless its environment says how (`MALLOC_...`).

    Returns:
        Whether it will.
    """
    if not sys.platform.startswith("linux"):
        return False
    environment = os.environ
    if "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False  # musl has none.
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, 0))
