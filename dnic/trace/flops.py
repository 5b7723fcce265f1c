"""Floating point operations of whatever runs, counted below autograd.

torch's `FlopCounterMode` keeps its figures by module and tracks modules with hooks of its own;
here a figure is needed for every single operation. So this keeps one running total with torch's own
formulas (`torch.utils.flop_counter.flop_registry`) and adds the one that the registry lacks:
attention on a CPU. Operations without a formula (element-wise ones) count as zero: their time is
their memory traffic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dnic.trace.recorded import storage_key

# These take (input, weight, bias, running_mean, running_var, training, ...).
_BATCH_NORMS = frozenset(
    {
        torch.ops.aten.native_batch_norm,
        torch.ops.aten.cudnn_batch_norm,
        torch.ops.aten.miopen_batch_norm,
    }
)


class FlopTally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A running total of forward FLOPs; read `total` before and after.

    Attributes:
        total: floating point operations so far.
        statistics: storages of running statistics that BatchNorm's kernels changed so far; these
            write them without raising the version of the tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.statistics: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func` and add its FLOPs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.total += _attention_flops(*args[:3])
        elif packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif packet in _BATCH_NORMS and args[5]:
            self.statistics |= {storage_key(held) for held in args[3:5] if held is not None}
        return out


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """2 B H L S (E + Ev) for query [B, H, L, E], key [B, H, S, E], value [B, H, S, Ev]."""
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    return 2 * scores * (query.shape[3] + value.shape[3])
