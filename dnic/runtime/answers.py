"""Which gradients of an epoch may come: those for which everything has left that they answer to.

A stage above goes back through a batch when it has all microbatches of it; one that is late itself
when it has `late` batches more. Links that post a receive no earlier than it can be answered are
told (`dnic.runtime.nccl_links`). The last gradients of an epoch come without being counted here:
the stage asks for them.
"""

from __future__ import annotations

from collections import deque

from dnic.runtime.crossing import Returns
from dnic.runtime.links import Receiver


class Answers:
    """Counts the gradients of one interface that may come.

    Args:
        returned: where they arrive.
        late: batches by which the stage above is late.

    Attributes:
        returns: whose gradients come back.
    """

    def __init__(self, returned: Receiver, late: int = 0) -> None:
        self.returns = Returns()
        self._returned = returned
        self._late = late
        self._open: deque[tuple[int, int]] = deque()  # steps that are not answered yet
        self._messages = 0

    def begin(self) -> None:
        """An epoch begins."""
        self._open.clear()
        self._messages = 0

    def sent(self, step: int, microbatches: int) -> None:
        """All messages of a step have left, one for each microbatch, for all stages above."""
        self._open.append((step, microbatches if step in self.returns else 0))
        while self._open and self._open[0][0] <= step - self._late:
            self._messages += self._open.popleft()[1]
        self._returned.expect(self._messages)
