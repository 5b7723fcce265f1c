"""In which order a device of a pipeline carries out its forwards and backwards.

GPipe: Huang et al. 2019, arXiv 1811.06965, section 2.3. 1F1B: Narayanan et al. 2021, arXiv
2104.04473, section 2.2; interleaved: the same, with warm-up as `torch.distributed.pipelining` has
it. Zero-bubble: Qi et al. 2023, arXiv 2401.10241, section 2, as torch has it. Eager 1F1B is what
our own engine runs: `dnic.runtime.order`. All backwards go in the order of the microbatches, as
torch's do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from dnic.errors import PartitionError


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward or backward pass of one microbatch through one stage.

    `part` is what a backward pass computes: all of it, the gradient of the stage's input, or later
    those of its parameters.
    """

    forward: bool
    stage: int
    microbatch: int
    part: Literal["whole", "input", "weight"] = "whole"


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
    each = _round_size(microbatches, devices)
    total = microbatches * chunks
    ahead = min(total, (chunks - 1) * each + 2 * (devices - 1 - device))
    turn = _turns(device, devices, each, chunks)
    return _alternate(ahead, total, lambda k: turn(True, k), lambda k: turn(False, k))


def zero_bubble_order(device: int, devices: int, microbatches: int, chunks: int) -> Order:
    """Interleaved, with half the warm-up; parameters' gradients come last, where there is time.

    Each device is as many of these behind its inputs' gradients as devices come before it.

    Raises:
        PartitionError: the microbatches do not fill whole rounds of as many as there are devices.
    """
    each = _round_size(microbatches, devices)
    total = microbatches * chunks
    ahead = min(total, (chunks - 1) * each + devices - 1 - device)
    turn = _turns(device, devices, each, chunks)
    passes = [turn(True, k) for k in range(ahead)]
    for k in range(ahead, total + ahead):
        if k < total:
            passes.append(turn(True, k))
        passes.append(replace(turn(False, k - ahead), part="input"))
        if k - ahead >= device:
            passes.append(replace(turn(False, k - ahead - device), part="weight"))
    left = range(max(0, total - device), total)
    return (*passes, *(replace(turn(False, k), part="weight") for k in left))


def in_flight(order: Order) -> int:
    """The most passes whose activations are held at once."""
    return max(accumulate(_taken(step) for step in order))


def fills_rounds(microbatches: int, devices: int) -> bool:
    """Whether microbatches keep all devices of an interleaved schedule busy, in equal rounds."""
    return microbatches >= devices and microbatches % (microbatches // devices) == 0


def _taken(step: Pass) -> int:
    if step.forward:
        return 1
    return 0 if step.part == "input" else -1


def _round_size(microbatches: int, devices: int) -> int:
    rounds = max(1, microbatches // devices)
    if microbatches % rounds:
        raise PartitionError(
            f"{microbatches} microbatches over {devices} devices, interleaved",
            expected=f"a multiple of {rounds}",
        )
    return microbatches // rounds


def _turns(device: int, devices: int, each: int, chunks: int) -> Callable[[bool, int], Pass]:
    """A device's k-th forward or backward: a round of one stage, then of the next."""

    def turn(forward: bool, k: int) -> Pass:
        part, place = divmod(k, each)
        round_, chunk = divmod(part, chunks)
        chunk = chunk if forward else chunks - 1 - chunk
        return Pass(forward, chunk * devices + device, round_ * each + place)

    return turn


def _alternate(
    ahead: int, total: int, forward: Callable[[int], Pass], backward: Callable[[int], Pass]
) -> Order:
    passes = [forward(k) for k in range(ahead)]
    for k in range(ahead, total):
        passes += [forward(k), backward(k - ahead)]
    passes += [backward(k) for k in range(total - ahead, total)]
    return tuple(passes)
