"""Probes as files: what is read again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnic.asked import probe_files, requested
from dnic.compiler.probe_file import predictability_of, read_probe, write_probe
from dnic.errors import SpecError
from dnic.graph.digest import graph_digest
from dnic.graph.graph import Graph, Operation
from dnic.partition.probed import Probe, ProbedCut, ProbedModel, ProbedTraining
from dnic.spec import load_spec, spec_from_mapping


def graph(target: str = "layer", name: str = "Net") -> Graph:
    operations = (
        Operation("x", "input", "x"),
        Operation("layer", "module", target, inputs=("x",)),
        Operation("output", "output", "output", inputs=("layer",)),
    )
    return Graph(name, 4, operations)


@pytest.fixture
def probe() -> Probe:
    training = ProbedTraining(
        data="train_data",
        samples=9,
        batch_size=4,
        optimizer="SGD",
        options={"lr": 0.1},
        seed=0,
        steps=9,
        first_loss=1.0,
        last_loss=0.5,
        seconds=1.0,
        threads=1,
    )
    cut = ProbedCut(after="layer", gap=2, share=1.0, parameters=1, tensors=())
    model = ProbedModel(name="Net", digest=graph_digest(graph()))
    return Probe(dnic="0", torch="0", model=model, training=training, cuts=(cut,), rows=())


def test_what_is_written_is_read_again(probe: Probe, tmp_path: Path) -> None:
    file = tmp_path / "new" / "probe.json"
    write_probe(probe, file)
    assert read_probe(file) == probe
    found = predictability_of(file, graph())
    assert found is not None and found.probe == probe and found.origin == "probe.json"
    assert predictability_of(None, graph()) is None


def test_the_digest_is_of_the_model_and_not_of_the_batch() -> None:
    assert graph_digest(graph()) != graph_digest(graph("other"))
    larger = Graph("Net", 64, graph().operations)
    assert graph_digest(graph()) == graph_digest(larger)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (graph("other"), "the probe is of another version of Net"),
        (graph(name="Mine"), "the probe is of Net, not Mine"),
    ],
)
def test_a_probe_of_another_model_is_refused(
    probe: Probe, tmp_path: Path, other: Graph, says: str
) -> None:
    write_probe(probe, tmp_path / "probe.json")
    with pytest.raises(SpecError, match=says):
        predictability_of(tmp_path / "probe.json", other)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such probe"),
        ("{", "cannot be read"),
        ("[]", "the file: "),
        ('{"format": 2}', "format: "),
    ],
)
def test_what_is_no_probe(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "probe.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SpecError, match=says):
        read_probe(file)


def test_figures_must_be_finite(probe: Probe, tmp_path: Path) -> None:
    content = probe.model_dump(mode="json")
    content["training"]["last_loss"] = float("nan")
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match="last_loss"):
        read_probe(file)


def test_a_probe_in_a_spec_is_relative_to_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("model: {file: model.py}\npartition: {probe: found/probe.json}\n")
    assert load_spec(spec).partition.probe == tmp_path / "found" / "probe.json"
    asked = requested(None, spec, None, None, probe=Path("other.json"))
    assert asked.partition.probe == Path("other.json")


def test_a_plan_has_decided_already(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--plan comes without --probe"):
        requested(None, None, None, tmp_path / "plan.yaml", probe=Path("probe.json"))


def test_where_a_probe_is_written() -> None:
    spec = spec_from_mapping({"model": {"file": "nets/digits/model.py"}}, "test")
    data, picture = probe_files(spec, None)
    assert data == Path("build/digits.probe.json") and picture == Path("build/digits.probe.svg")
    assert probe_files(spec, Path("a/b.json")) == (Path("a/b.json"), Path("a/b.svg"))
    with pytest.raises(SpecError, match="written as JSON"):
        probe_files(spec, Path("probe.yaml"))
