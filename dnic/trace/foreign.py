"""Randomness that torch does not see, and functions with a derivative of the user's own.

`random.random() < p` in a forward (layer drop) leaves no trace among the torch functions that were
called, only in the state of the generator. A `torch.autograd.Function` runs its forward in plain
torch functions: written down as those, its own derivative would be lost without a sign.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Apply = Callable[..., Any]


class Watch:
    """Notices that Python's or NumPy's global generator was used."""

    def __init__(self) -> None:
        self._seen = self._states()

    def used(self) -> str:
        """Which of them was used since the last look; empty when none was."""
        now = self._states()
        before, self._seen = self._seen, now
        if now[0] != before[0]:
            return "Python's random"
        return "NumPy's random" if now[1] != before[1] else ""

    @staticmethod
    def _states() -> tuple[Any, Any]:
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        return random.getstate(), (kind, bytes(np.asarray(keys)), position, has_gauss, gauss)


@contextmanager
def seeded() -> Iterator[None]:
    """Every global generator starts from a fixed seed inside, and is put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def intercepted_functions(
    call: Callable[[Apply, type, tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Send every `torch.autograd.Function.apply` through `call(apply, class, args, kwargs)`."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        return call(original.__get__(None, cls), cls, args, kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def is_importable(kind: type) -> bool:
    """Whether emitted code can import a class by its name."""
    try:
        found: Any = importlib.import_module(kind.__module__)
    except ImportError:
        return False
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind
