"""What ranks tell one another outside the steps: epoch headers, results, live figures.

Small JSON values over torch's key-value store, which exists anyway for the rendezvous. Unlike a
collective it needs no device, no partner that happens to be ready, and a rank may look without
waiting; unlike `send_object_list` nothing is pickled. Not for tensors, not for anything per step.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store

from dnic.runtime.failure import LinkFault


class Board:
    """Values by key, published by one rank and read by any.

    Args:
        store: torch's store; None where there is only one process.
        timeout_s: how long `read` waits for a value that is not there yet.
    """

    def __init__(self, store: Store | None, timeout_s: float) -> None:
        self._store = PrefixStore("dnic", store) if store is not None else None
        self._local: dict[str, Any] = {}
        self._timeout = timedelta(seconds=timeout_s)

    def publish(self, key: str, value: Any) -> None:
        """Makes a JSON value readable by every rank."""
        if self._store is None:
            self._local[key] = value
            return
        try:
            self._store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise LinkFault("the rendezvous store", str(error)) from error

    def read(self, key: str) -> Any:
        """Waits for a value.

        Raises:
            LinkFault: it did not come in time, or the store is gone.
        """
        if self._store is None:
            return self._local[key]
        try:
            self._store.wait([key], self._timeout)
            return json.loads(self._store.get(key))
        except RuntimeError as error:
            raise LinkFault("the rendezvous store", str(error)) from error

    def peek(self, key: str) -> Any | None:
        """The value if it is there already."""
        if self._store is None:
            return self._local.get(key)
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except RuntimeError as error:
            raise LinkFault("the rendezvous store", str(error)) from error

    def leave(self, rank: int, ranks: int) -> None:
        """Says that this rank is done; rank 0, which may hold the store, leaves last."""
        if rank:
            self.publish(f"left/{rank}", True)
        else:
            for other in range(1, ranks):
                self.read(f"left/{other}")
