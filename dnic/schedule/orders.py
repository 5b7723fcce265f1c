"""In which order a device of a pipeline carries out its forwards and backwards.

GPipe: Huang et al. 2019, arXiv 1811.06965, section 2.3. 1F1B: Narayanan et al. 2021, arXiv
2104.04473, section 2.2; interleaved: the same, with warm-up as `torch.distributed.pipelining` has
it. Eager 1F1B is what our own engine runs: `dnic.runtime.order`. All backwards go in the order of
the microbatches, as torch's do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from dnic.errors import PartitionError


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward or backward pass of one microbatch through one stage."""

    forward: bool
    stage: int
    microbatch: int


Order = tuple[Pass, ...]


def gpipe_order(device: int, devices: int, microbatches: int) -> Order:
    """All forwards, then all backwards."""
    return tuple(Pass(forward, device, k) for forward in (True, False) for k in range(microbatches))


def one_f_one_b_order(device: int, devices: int, microbatches: int) -> Order:
    """As many forwards ahead as there are devices behind, then one forward, one backward."""
    ahead = min(microbatches, devices - 1 - device)
    return _alternate(
        ahead,
        microbatches,
        lambda k: Pass(True, device, k),
        lambda k: Pass(False, device, k),
    )


def eager_order(device: int, devices: int, microbatches: int) -> Order:
    """1F1B with two forwards ahead for each device behind, which hides the messages."""
    ahead = min(microbatches, 2 * (devices - 1 - device))
    return _alternate(
        ahead,
        microbatches,
        lambda k: Pass(True, device, k),
        lambda k: Pass(False, device, k),
    )


def interleaved_order(device: int, devices: int, microbatches: int, chunks: int) -> Order:
    """1F1B over `chunks` stages a device: stage `k` is on device `k mod devices`.

    Raises:
        PartitionError: the microbatches do not fill whole rounds of as many as there are devices.
    """
    rounds = max(1, microbatches // devices)
    if microbatches % rounds:
        raise PartitionError(
            f"{microbatches} microbatches over {devices} devices, interleaved",
            expected=f"a multiple of {rounds}",
        )
    each = microbatches // rounds
    total = microbatches * chunks
    ahead = min(total, (chunks - 1) * each + 2 * (devices - 1 - device))

    def pass_of(forward: bool, k: int) -> Pass:
        part, place = divmod(k, each)
        round_, chunk = divmod(part, chunks)
        chunk = chunk if forward else chunks - 1 - chunk
        return Pass(forward, chunk * devices + device, round_ * each + place)

    return _alternate(ahead, total, lambda k: pass_of(True, k), lambda k: pass_of(False, k))


def in_flight(order: Order) -> int:
    """The most passes whose activations are held at once."""
    return max(accumulate(1 if step.forward else -1 for step in order))


def _alternate(
    ahead: int, total: int, forward: Callable[[int], Pass], backward: Callable[[int], Pass]
) -> Order:
    passes = [forward(k) for k in range(ahead)]
    for k in range(ahead, total):
        passes += [forward(k), backward(k - ahead)]
    passes += [backward(k) for k in range(total - ahead, total)]
    return tuple(passes)
