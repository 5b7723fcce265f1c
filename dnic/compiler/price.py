"""What the model's operations cost where it is to run: measured here, or computed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from dnic.compiler.ask import measures
from dnic.compiler.load import Loaded, output_shapes
from dnic.cost import Costs, DeviceProfile, MeasuredModel, cost_model
from dnic.cost.recompute import recomputed
from dnic.cost.surroundings import analytic_loss, measure_loader_us, with_loader
from dnic.graph.graph import Graph
from dnic.graph.shape import elements
from dnic.partition.plan import PlannedTraining
from dnic.runtime.batches import Batches, read_dataset
from dnic.runtime.inputs import Inputs
from dnic.runtime.plan import InputSpec, SamplePlan
from dnic.spec import Spec
from dnic.trace import TracedModel

_FLOAT_BYTES = 4


def price(
    spec: Spec,
    loaded: Loaded,
    fine: TracedModel,
    graph: Graph,
    profile: DeviceProfile,
    training: PlannedTraining,
    progress: Callable[[str], None] | None = None,
) -> tuple[Costs, float]:
    """Costs of every operation of one step, the loss and reading batches included.

    Args:
        spec: whether to measure.
        loaded: the model file, run.
        fine, graph: the fine capture.
        profile: of the device.
        training: optimizer, batch size, precision, and whether activations are recomputed.
        progress: told what is being measured.

    Returns:
        The costs, and how much of them is reading a batch, in microseconds.
    """
    costs, reading_us = _price(spec, loaded, fine, graph, profile, training, progress)
    return recomputed(costs) if training.recompute is True else costs, reading_us


def _price(
    spec: Spec,
    loaded: Loaded,
    fine: TracedModel,
    graph: Graph,
    profile: DeviceProfile,
    training: PlannedTraining,
    progress: Callable[[str], None] | None,
) -> tuple[Costs, float]:
    """The same without recomputation."""
    name, options = training.optimizer.name, training.optimizer.options
    if not measures(spec):
        costs = cost_model(graph, profile, name, options)
        return _with_loss(costs, loaded, graph), 0.0
    samples = SamplePlan(
        inputs=tuple(InputSpec(name, path) for name, path in fine.inputs),
        constants=tuple(fine.constants),
        target=loaded.target_key,
    )
    target = None if loaded.target is None else _targets(loaded, samples, graph.batch_size)
    model = MeasuredModel(
        profile,
        fine,
        loaded.inputs,
        loss=None if target is None else loaded.source.loss,
        target=target,
        precision=training.precision,
        progress=progress,
    )
    costs = model.costs(graph, name, options)
    if target is None:
        costs = _with_loss(costs, loaded, graph)
    reading_us = _reading_us(loaded, samples, graph.batch_size)
    return with_loader(costs, reading_us), reading_us


def _with_loss(costs: Costs, loaded: Loaded, graph: Graph) -> Costs:
    """The costs with a computed loss, unless the model computes its own."""
    if loaded.source.loss is None:
        return costs
    shapes = output_shapes(graph)
    return analytic_loss(
        costs, sum(_FLOAT_BYTES * elements(shape, graph.batch_size) for shape in shapes)
    )


def _reading_us(loaded: Loaded, samples: SamplePlan, batch_size: int) -> float:
    """Microseconds of reading one batch as a bundle does; 0 without training data."""
    if loaded.source.train_data is None:
        return 0.0
    batches = Batches(
        read_dataset(loaded.source.train_data),
        batch_size,
        shuffle=True,
        seed=0,
        loader_options={},
        samples=samples,
    )
    return measure_loader_us(iter(batches.epoch(1)))


def _targets(loaded: Loaded, samples: SamplePlan, batch_size: int) -> Tensor | None:
    """One batch of targets; None where the data are fewer than that."""
    assert loaded.source.train_data is not None  # There is a target.
    loader: DataLoader[Any] = DataLoader(
        read_dataset(loaded.source.train_data), batch_size=batch_size
    )
    _, target = Inputs(samples).split(next(islice(loader, 1)))
    return target if target.shape[0] == batch_size else None
