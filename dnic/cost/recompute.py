"""What recomputing activations costs: one more forward in every backward pass.

Only where every stage does it; which stages will be there is not known when costs are made. Memory
is left as it is without: how much is kept follows from the blocks of a stage.
"""

from __future__ import annotations

from dataclasses import replace

from dnic.cost.costs import Costs


def recomputed(costs: Costs) -> Costs:
    """The costs with every operation's forward a second time in its backward."""
    return replace(
        costs,
        backward_us=_sums(costs.backward_us, costs.forward_us),
        backward_fixed_us=_sums(costs.backward_fixed_us, costs.forward_fixed_us),
        backward_flops=tuple(
            b + f for b, f in zip(costs.backward_flops, costs.forward_flops, strict=True)
        ),
        backward_bytes=tuple(
            b + f for b, f in zip(costs.backward_bytes, costs.forward_bytes, strict=True)
        ),
    )


def _sums(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
