"""What a probe works on: the model file run and captured, its data, and the cuts to look at."""

from __future__ import annotations

from dataclasses import dataclass

from dnic.compiler.ask import check_sources, request_of, training_of
from dnic.compiler.load import Loaded, check_loss, load, output_shapes, target_of
from dnic.cost import load_profile
from dnic.errors import SpecError
from dnic.graph.batch import at_batch
from dnic.graph.build import build_graph
from dnic.graph.digest import graph_digest
from dnic.graph.graph import Graph
from dnic.graph.shape import Shape, resolve
from dnic.partition.plan import PlannedTarget, PlannedTraining
from dnic.partition.probed import ProbeSkip
from dnic.partition.request import PartitionRequest
from dnic.probe.asked import Asked
from dnic.probe.candidates import PROFILE, Candidate, candidates
from dnic.runtime.batches import Batches, read_dataset
from dnic.runtime.loss import Loss, own_loss
from dnic.runtime.plan import InputSpec, SamplePlan, TargetPlan
from dnic.spec import Spec
from dnic.trace import TracedModel, capture_fine


@dataclass(frozen=True)
class Subject:
    """A model that can be probed.

    Attributes:
        loaded: the model file, run.
        fine: its fine capture.
        graph: of that, at the batch size that is trained with.
        digest: of the model.
        training: how it trains.
        target: what targets are; None where nothing is known of them.
        request: what the spec asks for at each interface.
        cuts: to probe.
        skipped: cuts that cannot be.
    """

    loaded: Loaded
    fine: TracedModel
    graph: Graph
    digest: str
    training: PlannedTraining
    target: PlannedTarget | None
    request: PartitionRequest
    cuts: tuple[Candidate, ...]
    skipped: tuple[ProbeSkip, ...]

    @property
    def loss(self) -> Loss:
        """The model file's, or the one that the model computes."""
        return self.loaded.source.loss or own_loss

    @property
    def output(self) -> Shape | None:
        """Shape of the model's output where it is a single tensor."""
        shapes = list(output_shapes(self.graph))
        return shapes[0] if len(shapes) == 1 else None

    @property
    def target_plan(self) -> TargetPlan | None:
        """The targets in the runtime's words; None where they are not one for each sample."""
        target = self.target
        if target is None or 0 in resolve(target.shape, 1):
            return None
        return TargetPlan(resolve(target.shape, 1)[1:], target.dtype, target.classes)

    def batches(self, seed: int) -> Batches:
        """Its training data, in an order that follows from a seed."""
        assert self.loaded.source.train_data is not None  # `subject_of` has seen to it.
        return Batches(
            read_dataset(self.loaded.source.train_data),
            self.training.batch_size,
            shuffle=True,
            seed=seed,
            loader_options={},
            samples=SamplePlan(
                inputs=tuple(InputSpec(name, path) for name, path in self.fine.inputs),
                constants=tuple(self.fine.constants),
                target=self.loaded.target_key,
            ),
        )


def subject_of(spec: Spec, asked: Asked) -> Subject:
    """Run and capture the model file, and choose the cuts.

    Args:
        spec: the model, and how it trains.
        asked: which cuts.

    Raises:
        SpecError: there are no weights, or no data to train on; or a cut that does not exist.
        TraceError: the model file or the model cannot be captured.
        PartitionError: no gradient can be predicted at any cut.
    """
    if spec.model.meta:
        raise SpecError(
            "a probe trains the model, and on the meta device it has no weights",
            where="model.meta",
            expected="false",
        )
    loaded = load(spec)
    check_sources(spec)
    if loaded.source.train_data is None:
        raise SpecError(
            f"the model file has no {spec.model.train_data}, and a probe trains",
            where=str(loaded.source.path),
            expected=f"{spec.model.train_data}() -> a Dataset of (input, target) or of mappings",
        )
    fine = capture_fine(loaded.model, loaded.inputs)
    check_loss(loaded.source, fine)
    traced = build_graph(fine)
    training = training_of(spec, traced.batch_size)
    graph = at_batch(traced, training.batch_size)
    cuts, skipped = candidates(graph, asked)
    return Subject(
        loaded=loaded,
        fine=fine,
        graph=graph,
        digest=graph_digest(traced),
        training=training,
        target=target_of(loaded.target, graph),
        request=request_of(spec, load_profile(PROFILE), graph),
        cuts=cuts,
        skipped=skipped,
    )
