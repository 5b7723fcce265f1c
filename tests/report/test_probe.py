"""The table and the picture of a probe."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from dnic.partition.probed import (
    Probe,
    ProbedCut,
    ProbedModel,
    ProbedRow,
    ProbedTensor,
    ProbedTraining,
    ProbeSkip,
)
from dnic.report import ink, probe_svg, probe_table

SVG = "{http://www.w3.org/2000/svg}"


def row(cut: str, source: str, lateness: int, **figures: object) -> ProbedRow:
    given = {"cosine": 0.5, "norm_ratio": 1.0, "explained": 0.5, "beats_zero": 1.0, "checks": 8}
    given |= {"parameter_cosine": 0.5, "progress": 0.9, **figures}
    return ProbedRow(cut=cut, source=source, lateness=lateness, **given)  # type: ignore[arg-type]


@pytest.fixture
def probe() -> Probe:
    training = ProbedTraining(
        data="train_data",
        samples=640,
        batch_size=64,
        optimizer="AdamW",
        options={"lr": 1e-3},
        seed=0,
        steps=200,
        first_loss=2.3,
        last_loss=0.25,
        seconds=41.6,
        threads=1,
    )
    tensor = ProbedTensor(name="h", shape=("B", 8), dtype="float32")
    cuts = tuple(
        ProbedCut(after=name, gap=gap, share=share, parameters=10, tensors=(tensor,))
        for name, gap, share in (("blocks.0", 3, 0.25), ("a<b&c", 6, 0.5), ("blocks.2", 9, 0.75))
    )
    rows = []
    for place, cut in enumerate(cuts):
        for lateness in (1, 4):
            progress = 0.5 + 0.2 * place
            error = 0.1 if lateness == 1 else None
            figures = {"progress": progress, "progress_error": error}
            rows.append(row(cut.after, "synthetic", lateness, **figures))
        rows.append(row(cut.after, "local", 1))
        rows.append(row(cut.after, "local", 4))
    rows.append(row("blocks.2", "stale", 1, progress=None, compared="parameters"))
    rows.append(row("blocks.2", "stale", 4, explained=-3.0, compared="parameters"))
    rows.append(row("blocks.2", "virtual", 1, explained=-0.1))
    return Probe(
        dnic="0",
        torch="0",
        model=ProbedModel(name="Net", digest="0" * 64),
        training=training,
        cuts=cuts,
        rows=tuple(rows),
        skipped=tuple(
            ProbeSkip(cut=cut.after, source="virtual", reason="no tail") for cut in cuts[:2]
        ),
    )


def printed(probe: Probe) -> list[str]:
    console = Console(width=80, record=True, highlight=False)
    with console.capture() as captured:
        console.print(probe_table(probe))
    return captured.get().splitlines()


def test_the_table_has_a_line_for_each_source(probe: Probe) -> None:
    lines = [line.split() for line in printed(probe)]
    assert ["blocks.0", "25", "%", "synthetic", "0.50", "0.50", "+300%", "+300%"] in lines
    assert ["local", "0.90", "0.90", "–", "–"] in lines
    # Not measured, or lost in noise; never: worse than none; a late gradient may be too long.
    assert ["stale", "–", "0.90", "–", "+23%"] in lines
    assert ["virtual", "0.90", "–", "never", "–"] in lines
    assert "200 exact steps of 64 samples in 42 s, loss 2.300 to 0.250" in printed(probe)[0]
    text = " ".join(" ".join(line) for line in lines)
    assert "not probed: virtual blocks.0 and 1 more: no tail" in text
    assert max(map(len, printed(probe))) <= 80


def test_the_picture_has_a_panel_for_each_lateness(probe: Probe) -> None:
    root = ET.fromstring(probe_svg(probe))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts.count("true gradients 1 update late") == 1
    assert texts.count("true gradients 4 updates late") == 1
    assert [t for t in texts if t in probe.sources] == list(probe.sources)
    assert sum("a<b&c" in (t or "") for t in texts) == 2  # named in both panels
    curves = list(root.iter(f"{SVG}polyline"))
    assert len(curves) == 4  # synthetic and local, in both panels
    first = [tuple(map(float, p.split(","))) for p in curves[0].attrib["points"].split()]
    across, heights = [x for x, _ in first], [y for _, y in first]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.11)
    assert heights == sorted(heights, reverse=True)  # better is higher
    marks = list(root.iter(f"{SVG}circle"))
    assert len(marks) == 3 * 2 * 2 + 2  # what is lost in noise has none
    upright = [line for line in root.iter(f"{SVG}line") if line.attrib["stroke"] == ink.BLUE]
    bars = [line for line in upright if line.attrib["x1"] == line.attrib["x2"]]
    assert len(bars) == 3  # of the synthetic gradients at the first lateness
    styles = {(c.attrib["stroke"], c.attrib.get("stroke-dasharray")) for c in curves}
    assert len(styles) == 2


def test_everything_lies_within_the_picture(probe: Probe) -> None:
    wild = probe.model_copy(
        update={"rows": (*probe.rows, row("blocks.0", "stale", 1, progress=-40.0))}
    )
    root = ET.fromstring(probe_svg(wild))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for mark in root.iter(f"{SVG}circle"):
        assert 0 < float(mark.attrib["cx"]) < width and 0 < float(mark.attrib["cy"]) < height
