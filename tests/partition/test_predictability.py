"""From a probe to penalties, and from penalties to cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from dnic.cost import DeviceProfile, cost_model
from dnic.graph.graph import Graph
from dnic.partition import InterfaceChoice, PartitionRequest, PlannedTarget, decide, place
from dnic.partition.penalties import ruled_out, settled
from dnic.partition.predictability import MOST, Predictability, further_steps
from dnic.partition.probed import Probe, ProbedCut, ProbedModel, ProbedRow, ProbedTraining
from tests.partition.planning import LABELS, planned

FLOPS = [1_000_000_000] * 8


def row(cut: str, source: str = "synthetic", lateness: int = 1, **figures: object) -> ProbedRow:
    given = {"cosine": 0.5, "norm_ratio": 1.0, "explained": 0.5, "beats_zero": 1.0, "checks": 8}
    given |= {"parameter_cosine": 0.5, "progress": 1.0, **figures}
    return ProbedRow(cut=cut, source=source, lateness=lateness, **given)  # type: ignore[arg-type]


def predictability(*rows: ProbedRow) -> Predictability:
    """`layers.n` ends before gap n + 2."""
    names = dict.fromkeys(r.cut for r in rows)
    gaps = {name: int(name.split(".")[1]) + 2 for name in names}
    training = ProbedTraining(
        data="train_data",
        samples=9,
        batch_size=4,
        optimizer="SGD",
        options={},
        seed=0,
        steps=9,
        first_loss=1.0,
        last_loss=0.5,
        seconds=1.0,
        threads=1,
    )
    cuts = [
        ProbedCut(after=name, gap=gaps[name], share=0.1, parameters=1, tensors=())
        for name in sorted(names, key=lambda name: gaps[name])
    ]
    model = ProbedModel(name="Net", digest="0" * 64)
    return Predictability(
        Probe(dnic="0", torch="0", model=model, training=training, cuts=tuple(cuts), rows=rows)
    )


@pytest.mark.parametrize(
    ("progress", "steps"),
    [(1.0, 0.0), (1.3, 0.0), (0.5, 3.0), (0.31, 1 / 0.31**2 - 1), (0.3, inf), (-0.2, inf)],
)
def test_steps_are_one_over_the_square_of_progress(progress: float, steps: float) -> None:
    found = predictability(row("layers.2", progress=progress)).penalty(4, "synthetic", 1)
    assert found is not None and found.steps == pytest.approx(steps)
    assert found.hopeless is (steps == inf) and found.counted == pytest.approx(min(steps, MOST))
    assert f"synthetic at lateness 1 makes {progress:.2f} of the progress" in found.reason


def test_what_is_no_better_than_zero_is_ruled_out() -> None:
    asked = predictability(
        row("layers.2", explained=0.0),
        row("layers.2", "stale", explained=-2.0, compared="parameters"),
    )
    ruled_out, stale = asked.penalty(4, "synthetic", 1), asked.penalty(4, "stale", 1)
    assert ruled_out is not None and ruled_out.hopeless
    assert "no better than no gradient" in ruled_out.reason
    # A late gradient is too long where the loss falls, which says nothing of its direction.
    assert stale is not None and stale.steps == 0.0


def test_what_a_probe_says_nothing_of() -> None:
    asked = predictability(
        row("layers.2", "local", progress=0.1), row("layers.2", "virtual", progress=None)
    )
    assert asked.penalty(4, "local", 1) is None
    assert asked.penalty(4, "virtual", 1) is None
    assert asked.penalty(4, "synthetic", 1) is None
    assert further_steps(row("layers.2", progress=None)) is None


@pytest.mark.parametrize(
    ("window", "progress"), [(1, 0.9), (2, 0.8), (4, 0.8), (5, 0.7), (16, 0.7), (40, 0.7)]
)
def test_the_lateness_is_the_next_above_the_window(window: int, progress: float) -> None:
    rows = [
        row("layers.2", lateness=late, progress=p) for late, p in ((16, 0.7), (1, 0.9), (4, 0.8))
    ]
    found = predictability(*rows).penalty(4, "synthetic", window)
    assert found is not None and found.steps == pytest.approx(1 / progress**2 - 1)


def test_a_gap_that_was_not_measured_is_as_bad_as_its_worse_neighbour() -> None:
    asked = predictability(
        row("layers.1", progress=0.9), row("layers.4", progress=0.6), row("layers.6", progress=0.8)
    )
    steps = {gap: asked.penalty(gap, "synthetic", 1) for gap in (2, 3, 4, 5, 6, 7, 8, 9)}
    of = {p: 1 / p**2 - 1 for p in (0.9, 0.6, 0.8)}
    expected = [of[p] for p in (0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.8, 0.8)]
    assert [found and found.steps for found in steps.values()] == pytest.approx(expected)
    between, beyond = steps[4], steps[9]
    assert between is not None and "(the worse of layers.1 and layers.4)" in between.reason
    assert beyond is not None and "(after layers.6)" in beyond.reason


def test_heads_that_see_no_targets_have_rows_of_their_own() -> None:
    asked = predictability(
        row("layers.2", progress=0.9), row("layers.2", "synthetic-no-context", progress=0.5)
    )
    request = PartitionRequest(2, predictability=asked)
    sees, blind = InterfaceChoice(), InterfaceChoice(context="none")
    assert request.penalty_at(4, sees, "synthetic", 1).steps == pytest.approx(1 / 0.81 - 1)
    assert request.penalty_at(4, blind, "synthetic", 1).steps == pytest.approx(3.0)
    assert request.penalty_at(4, sees, "exact", 1).steps == 0.0


def test_the_specs_word_counts_before_the_probes() -> None:
    request = PartitionRequest(2, predictability=predictability(row("layers.2", progress=0.5)))
    said = InterfaceChoice(penalty=(("synthetic", 0.05),))
    found = request.penalty_at(4, said, "synthetic", 1)
    assert (found.steps, found.reason) == (0.05, "interfaces.*.penalty of the spec")


def cuts_of(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> tuple[int, ...]:
    return place(graph, cost_model(graph, device), request).cuts


def test_a_plan_leaves_the_cut_that_cannot_be_predicted(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain(FLOPS)
    assert cuts_of(graph, device, PartitionRequest(2)) == (5,)
    fine = [row(f"layers.{i}") for i in range(7)]
    alike = PartitionRequest(2, predictability=predictability(*fine))
    assert cuts_of(graph, device, alike) == (5,)
    for bad in ({"explained": -0.1}, {"progress": 0.5}):
        rows = [row(f"layers.{i}", **(bad if i in (3, 2) else {})) for i in range(7)]
        request = PartitionRequest(2, predictability=predictability(*rows))
        assert cuts_of(graph, device, request) == (6,)


def test_the_plan_says_where_its_figures_come_from(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain(FLOPS)
    rows = [row(f"layers.{i}", progress=0.5 if i == 3 else 0.95, lateness=2) for i in range(7)]
    request = PartitionRequest(2, predictability=predictability(*rows))
    decision = decide(graph, cost_model(graph, device), request, None)
    made = next(a for a in decision.found if a.name == "decoupled")
    assert made.decided is not None
    (interface,) = made.decided.interfaces
    assert interface.after in ("layers.2", "layers.4")
    steps = 1 / 0.95**2 - 1
    # Without training data no head sees targets: what was measured of one that does still counts.
    assert made.penalty == pytest.approx(steps)
    assert interface.reason.endswith(
        f"counted as {steps:.0%} more steps (probe.json: synthetic at lateness 2 makes 0.95 of the "
        "progress)"
    )


def test_where_nothing_can_be_predicted_stages_wait(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain(FLOPS)
    rows = [row(f"layers.{i}", explained=-0.1) for i in range(7)]
    request = PartitionRequest(2, predictability=predictability(*rows))
    decision = decide(graph, cost_model(graph, device), request, None)
    assert not decision.verdict.decouple
    assert all(a.name != "decoupled" for a in decision.found)
    why = ruled_out(5, InterfaceChoice(), "synthetic", request)
    assert why == "probe.json: synthetic at lateness 1 is no better than no gradient"
    assert ruled_out(5, InterfaceChoice(gradient="synthetic"), "synthetic", request) == ""
    assert ruled_out(5, InterfaceChoice(), "synthetic", PartitionRequest(2)) == ""


def test_auto_takes_the_source_that_costs_least(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain(FLOPS)
    rows = [
        row(f"layers.{i}", source, progress=progress)
        for i in range(7)
        for source, progress in (("synthetic", 0.7), ("none", 0.9), ("local", 1.0))
    ]
    asked = predictability(*rows)
    default = InterfaceChoice(sources=("exact", "synthetic", "local", "none"))

    def settled_by(choice: InterfaceChoice) -> tuple[str, ...]:
        return settled(choice, 5, (), PartitionRequest(2, predictability=asked), None).sources

    assert settled_by(default) == ("none", "exact")
    # Nothing is known of what `auto` would take, or there is nothing to choose.
    assert settled_by(replace(default, sources=("local", "none"))) == ("local", "none")
    assert settled_by(replace(default, gradient="local")) == default.sources
    assert settled_by(replace(default, sources=("exact", "synthetic"))) == ("exact", "synthetic")
    assert settled(default, 5, (), PartitionRequest(2), None) is default
    said = replace(default, penalty=(("none", 1.5),))
    assert settled_by(said) == ("synthetic", "exact")
    request = PartitionRequest(
        2, predictability=asked, default=replace(default, sources=("synthetic", "none"))
    )
    made = next(
        a
        for a in decide(graph, cost_model(graph, device), request, None).found
        if a.name == "decoupled"
    )
    assert made.decided is not None
    (interface,) = made.decided.interfaces
    assert interface.gradient == "none" and "none at lateness 1 makes 0.90" in interface.reason


def test_a_local_loss_where_a_probe_rules_out_the_rest(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    useless = [row(f"layers.{i}", "synthetic", explained=-0.1) for i in range(7)]
    as_useless = [row(f"layers.{i}", "virtual", explained=-0.1) for i in range(7)]
    poor = [row(f"layers.{i}", "virtual", progress=0.4) for i in range(7)]
    both = PartitionRequest(
        2, cuts=("layers.3",), predictability=predictability(*useless, *as_useless)
    )
    one = replace(both, predictability=predictability(*useless, *poor))

    def found(request: PartitionRequest, target: PlannedTarget | None = LABELS) -> tuple[str, str]:
        (interface,) = planned(chain(FLOPS), device, request, target).interfaces
        return interface.gradient, interface.reason

    gradient, reason = found(both)
    assert gradient == "local"
    assert "synthetic at lateness 1 is no better than no gradient" in reason
    assert "virtual at lateness 1 is no better than no gradient" in reason
    assert found(one)[0] == "virtual"
    # Not asked for, not to be built, or by name.
    others = InterfaceChoice(sources=("synthetic", "virtual"))
    for gradient, reason in (found(replace(both, default=others)), found(both, None)):
        assert gradient == "exact" and "no better than no gradient" in reason
    named = InterfaceChoice(gradient="local", sources=("local",))
    gradient, reason = found(replace(both, default=named))
    assert gradient == "local" and "no better" not in reason
    # What the table takes by itself is not the probe's doing.
    table = InterfaceChoice(sources=("local", "synthetic"), stages=3)
    gradient, reason = found(replace(both, default=table))
    assert gradient == "local" and "no better" not in reason


def test_late_gradients_are_judged_as_late_as_they_come(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    """One update late they are good here, four updates late of no use; two is nearer to four."""
    good, bad = {"lateness": 1, "progress": 1.0}, {"lateness": 4, "progress": 0.1}
    rows = [row(f"layers.{i}", "stale", **said) for i in range(11) for said in (good, bad)]
    cuts = ("layers.2", "layers.5", "layers.8")

    def sources_at(window: int) -> list[str]:
        default = InterfaceChoice(stages=4, window=window)
        known = predictability(*rows)
        request = PartitionRequest(4, cuts=cuts, default=default, predictability=known)
        plan = planned(chain([1_000_000_000] * 12), device, request)
        return [interface.gradient for interface in plan.interfaces]

    assert sources_at(1) == ["stale", "local", "stale"]
    assert sources_at(2) == ["local"] * 3


def test_who_asks_for_a_head_gets_it_and_reads_what_it_costs(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain(FLOPS)
    asked = predictability(*(row(f"layers.{i}", explained=-0.1) for i in range(7)))
    choice = InterfaceChoice(gradient="synthetic")
    request = PartitionRequest(2, default=choice, predictability=asked)
    decision = decide(graph, cost_model(graph, device), request, None)
    assert decision.chosen.name == "decoupled" and decision.chosen.penalty == MOST
    assert decision.chosen.decided is not None
    (interface,) = decision.chosen.decided.interfaces
    assert "counted as 1000% more steps" in interface.reason
