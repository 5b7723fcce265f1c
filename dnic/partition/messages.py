"""What the tensors of an interface are on the way, and what that does to their bytes.

Half the bytes cost precision, so `auto` pays for them only where they buy time: where stages do not
wait for one another and a message as it is, there or back, would keep the link busy for longer than
a step. Latency does not count, a wider window hides it. On links faster than that, bfloat16 was
measured to gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dnic.cost import Link, occupancy_us, returned_share
from dnic.graph.graph import Value
from dnic.partition.request import InterfaceChoice

Dtype = Literal["float32", "bfloat16"]

_BF16_BYTES = 2
# Bytes of the dtypes that are converted; all others travel as they are.
_WIDE = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Message:
    """One batch's tensors and their gradients on the way.

    Attributes:
        dtype: of wider floating tensors.
        nbytes: sent with each batch.
        gradient_nbytes: that come back for a batch whose gradients come back.
        reason: why they are not as they are; empty where they are.
    """

    dtype: Dtype
    nbytes: int
    gradient_nbytes: int
    reason: str = ""


def asked_message(values: Sequence[Value], choice: InterfaceChoice) -> Message:
    """The message as far as it does not depend on the stages: `auto` leaves tensors as they are."""
    return _message(values, "bfloat16" if choice.message == "bf16" else "float32")


def plan_message(
    values: Sequence[Value],
    choice: InterfaceChoice,
    link: Link,
    step_us: float,
    return_every: int = 1,
    *,
    apart: bool,
) -> Message:
    """The message of an interface.

    Args:
        values: what crosses.
        choice: what is asked for.
        link: between the two stages.
        step_us: a step, as far as the link does not limit it.
        return_every: the gradients of every so many batches come back; 0: none.
        apart: whether the stages do not wait for one another.
    """
    whole, halved = (_message(values, dtype) for dtype in ("float32", "bfloat16"))
    if choice.message == "bf16":
        return Message("bfloat16", halved.nbytes, halved.gradient_nbytes, "bf16 messages asked for")
    float32 = any(value.dtype == "float32" for value in values)
    if choice.message == "fp32" or not apart or not float32:
        return whole
    there_us = occupancy_us(whole.nbytes, link)
    back_us = occupancy_us(whole.gradient_nbytes, link) * returned_share(return_every)
    if max(there_us, back_us) <= step_us:
        return whole
    reason = f"bf16 messages: fp32 takes {max(there_us, back_us) / 1000:.3g} ms on this link, "
    reason += f"a step {step_us / 1000:.3g} ms"
    return Message("bfloat16", halved.nbytes, halved.gradient_nbytes, reason)


def _message(values: Sequence[Value], dtype: Dtype) -> Message:
    nbytes = [_nbytes(value, dtype) for value in values]
    back = [size for value, size in zip(values, nbytes, strict=True) if value.differentiable]
    return Message(dtype, sum(nbytes), sum(back))


def _nbytes(value: Value, dtype: Dtype) -> int:
    wide = _WIDE.get(value.dtype)
    if dtype == "float32" or wide is None:
        return value.nbytes
    return value.nbytes // wide * _BF16_BYTES
