"""The maps: the best of all alternatives, the pictures, and pages that are what was computed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given

from dnic.cost import load_profile
from dnic.schedule import Machine, StageWork, data_parallel, decoupled, one_device
from dnic.schedule.pipeline_formulas import gpipe_us
from dnic.schedule.pipeline_work import Pipeline
from studies.alternatives import Workload, best_decoupled, best_exact, equal_gpipe_us
from studies.maps import abstract, cell, steps_of, transformer
from studies.maps_page import page
from studies.svg import Axis, Panel, picture, shade
from tests.schedule.parts import ALONE, CUTS, cut, link, whole

BLOCK = StageWork(300, 600, update_us=3, gradient_bytes=40, parameter_bytes=40, activation_bytes=64)


def workload(latency_us: float = 0.0, **rest: object) -> Workload:
    one = cut(4, latency_us, source="synthetic", predict_us=2.0, learn_us=4.0)
    machine = Machine(microbatch_us=1.0, overlap=1.0, link=link(latency_us, 1.0))
    given = {"block": BLOCK, "cut": one, "machine": machine, "samples": 8, "windows": (2, 8)}
    return Workload(**{**given, **rest})


@given(stage=ALONE, one=CUTS, stages=whole(9, 1), microbatches=whole(4, 1))
def test_gpipe_of_equal_stages_is_counted_up(
    stage: StageWork, one: object, stages: int, microbatches: int
) -> None:
    stage = replace(stage, loader_us=0.0)
    cuts = [one] * (stages - 1)
    made = Pipeline([stage] * stages, cuts, [()] * stages, microbatches, Machine())
    assert equal_gpipe_us(made) == pytest.approx(gpipe_us(made), rel=1e-12)


def test_without_delay_data_parallel_is_best_and_with_it_one_device() -> None:
    near, far = workload(), workload(1e6)
    exact = best_exact(near, 2)
    whole_model = StageWork(600, 1200, update_us=6, gradient_bytes=80)
    assert exact is not None and exact.kind == "data parallel"
    assert exact.step_us == data_parallel(whole_model, 2, machine=near.machine).step_us
    alone = best_exact(far, 2)
    assert alone is not None and alone.kind == "one device"
    assert alone.step_us == one_device(whole_model, machine=far.machine).step_us


def test_slow_reductions_leave_pipelines() -> None:
    heavy = workload(block=replace(BLOCK, gradient_bytes=100_000))
    exact = best_exact(heavy, 4)
    assert exact is not None and exact.name.startswith("interleaved 1F1B s4 r1")
    assert exact.step_us < 3600 / 4 * 1.3


def test_what_does_not_fit_is_left_out() -> None:
    assert best_exact(workload(memory_bytes=10), 2) is None
    assert best_decoupled(workload(memory_bytes=10), 2) is None
    assert cell(workload(memory_bytes=10), 2).speedup is None
    # A stage and one microbatch of eight in flight: 80 bytes of state, 8 of activations.
    tight = best_exact(workload(memory_bytes=100), 2)
    assert tight is not None and "1F1B s2 r1 m8" in tight.name
    small = replace(BLOCK, activation_bytes=1, backward_us=900)
    again = best_exact(workload(memory_bytes=82, recomputed=small), 2)
    assert again is not None and again.name.endswith("recomputing")


def test_decoupled_takes_the_smallest_window_that_will_do() -> None:
    found = best_decoupled(workload(), 8)
    assert found is not None
    way, window = found
    assert window == 2
    one = replace(workload().cut, window=2)
    stages = [replace(BLOCK, replicas=1)] * 8
    assert way.step_us <= decoupled(stages, [one] * 7).step_us
    far = best_decoupled(workload(2000.0), 8)
    assert far is not None and far[1] == 8


def test_the_workloads_are_as_the_page_has_them() -> None:
    work = abstract(1e6, 5.0)
    step_us = work.block.forward_us + work.block.backward_us + work.block.update_us
    assert step_us == pytest.approx(1e6)
    assert work.cut.occupancy_us() == pytest.approx(0.1e6)
    assert work.block.gradient_bytes == pytest.approx(0.6 * 1.25e9)
    assert work.cut.predict_us + work.cut.learn_us == pytest.approx(20_050)
    block = transformer(load_profile("A100-80GB"), 5.0, 1e9)
    assert block.cut.nbytes == 32 * 1024 * 1024 * 4
    assert block.block.parameter_bytes == 12 * 1024**2 * 4
    double = transformer(load_profile("A100-80GB"), 5.0, 1e9, 64)
    assert double.block.activation_bytes == 2 * block.block.activation_bytes
    assert double.block.update_us == block.block.update_us


def test_steps_include_both_ends() -> None:
    assert steps_of(1, 1000, 1) == pytest.approx([1, 10, 100, 1000])


def test_a_contour_runs_where_the_values_pass_zero() -> None:
    axis = Axis("x", (1, 10, 100), ((1, "1"),))
    panel = Panel(0, 0, 300, 300, axis, axis, "")
    panel.contour(lambda column, row: column - 0.5)
    assert len(panel.marks) == 2
    for mark in panel.marks:
        line = ElementTree.fromstring(mark)
        assert (line.get("x1"), line.get("x2")) == ("100.00", "100.00")


def test_places_on_a_logarithmic_axis() -> None:
    axis = Axis("x", (1, 10, 100), ())
    assert [axis.place(value, 300) for value in (1, 10, 100)] == [50, 150, 250]


def test_shades_and_pictures() -> None:
    assert shade(1.0) == "#f2f2f2"
    assert len({shade(value) for value in (0.4, 0.7, 0.9, 1.1, 1.3, 1.7, 3, 9, 99)}) == 9
    axis = Axis("a < b", (1, 10), ((1, "1 & 2"),))
    panel = Panel(0, 0, 20, 20, axis, axis, "<title>")
    panel.cells(lambda column, row: shade(column + row))
    panel.curve([(1, 1), (10, 10)], "#000000")
    root = ElementTree.fromstring(picture(50, 50, "a & b", [panel.svg()]))
    assert sum(element.tag.endswith("rect") for element in root) == 2 + 4


def test_the_pages_are_what_was_computed(project: Path) -> None:
    docs = project / "docs"
    content = json.loads((docs / "maps.json").read_text("utf-8"))
    assert (docs / "maps.md").read_text("utf-8") == page(content)
    for name in ("stage", "depth", "links"):
        ElementTree.fromstring((docs / f"maps-{name}.svg").read_text("utf-8"))
    first = content["stage_map"]["panels"]["2"][0][0]
    stage_us, delay_us = content["stage_map"]["stage_us"][0], content["stage_map"]["delays_us"][0]
    assert first == json.loads(json.dumps(vars(cell(abstract(stage_us, delay_us), 2))))
