"""What a step costs beside the model: reading a batch, the loss."""

from __future__ import annotations

from collections.abc import Iterator

from dnic.cost import Costs, DeviceProfile, Link
from dnic.cost.surroundings import LOSS_WALKS, analytic_loss, measure_loader_us, with_loader

DEVICE = DeviceProfile(
    name="round",
    flops_per_s=1e12,
    bytes_per_s=1e6,
    overhead_us=2.0,
    message_bytes_per_s=1e12,
    link=Link(bandwidth_bytes_per_s=1e9, latency_us=1.0),
)


def costs() -> Costs:
    zeros = (0, 0, 0)
    return Costs(
        operations=("x", "layer", "output"),
        forward_us=(0.0, 10.0, 0.0),
        backward_us=(0.0, 20.0, 0.0),
        update_us=(0.0, 5.0, 0.0),
        activation_bytes=zeros,
        parameter_bytes=zeros,
        gradient_bytes=zeros,
        optimizer_bytes=zeros,
        profile=DEVICE,
    )


def test_reading_is_at_the_first_operation_and_shrinks_with_the_batch() -> None:
    read = with_loader(costs(), 8.0)
    assert read.forward_us == (8.0, 10.0, 0.0)
    assert read.at(0.5).forward_us[0] == 4.0


def test_a_loss_walks_through_the_output() -> None:
    """100 bytes are read and written at 1 byte a microsecond, 2 us each to begin."""
    lost = analytic_loss(costs(), 100)
    assert lost.forward_us == (0.0, 10.0, LOSS_WALKS * 202.0)
    assert lost.backward_us == (0.0, 20.0, LOSS_WALKS * 202.0)
    assert lost.forward_fixed_us[-1] == lost.backward_fixed_us[-1] == LOSS_WALKS * 2.0


def test_reading_asks_for_batches_and_counts_no_first_one() -> None:
    asked: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(3):
            asked.append(number)
            yield number

    assert measure_loader_us(batches()) >= 0.0
    assert asked == [0, 1, 2]
    assert measure_loader_us(iter(())) == 0.0
