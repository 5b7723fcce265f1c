"""Which stages each process of a pipeline holds, and how many processes and microbatches fit.

Most ways of training have one stage in each process. The looped schedules deal several out:

- `interleaved` (Narayanan et al. 2021, arXiv 2104.04473): process `r` of `p` holds the stages
  `r, r + p, r + 2p, ...`, two at least;
- `zerobubble` (Qi et al. 2023, arXiv 2401.10241): the same, or one in each (their ZB-H1);
- `zbv` (the same paper, section 6): process `r` holds `r` and `2p - 1 - r`, so that the first one
  has the input and the loss.

Numbers in, numbers out; torch's schedules refuse the same, later and in other words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnic.runtime.plan import Mode

# Those that may hold several stages in a process; and those that go back in two parts.
LOOPED: tuple[Mode, ...] = ("interleaved", "zerobubble", "zbv")
SPLIT: tuple[Mode, ...] = ("zerobubble", "zbv")


def held_stages(mode: Mode, stages: int, processes: int, rank: int) -> tuple[int, ...]:
    """The stages that one process holds, ascending; the whole model counts as stage 0.

    Args:
        mode: of the run.
        stages: of the bundle.
        processes: a number that fits.
        rank: of the process.
    """
    if mode in ("backprop", "ddp"):
        return (0,)
    if mode == "zbv":
        return (rank, stages - 1 - rank)
    if mode in LOOPED:
        return tuple(range(rank, stages, processes))
    return (rank,)


def fitting_processes(mode: Mode, stages: int) -> tuple[int, ...]:
    """The numbers of processes on which a looped schedule runs so many stages, ascending."""
    counts = tuple(n for n in range(2, stages + 1) if stages % n == 0)
    if mode == "zbv":
        return tuple(n for n in counts if 2 * n == stages)
    return counts if mode == "zerobubble" else counts[:-1]


def usual_processes(mode: Mode, stages: int) -> int:
    """The most that fit; one for each stage where none does."""
    return max(fitting_processes(mode, stages), default=stages)


def takes_microbatches(mode: Mode, processes: int, number: int) -> bool:
    """Whether a schedule can run a batch of so many microbatches.

    The interleaved schedules go in rounds of as many as there are processes, or a few more: the
    rounds must be of one size.
    """
    if mode not in ("interleaved", "zerobubble"):
        return True
    return number % max(1, number // processes) == 0
