"""Diagrams become valid files with either renderer, whatever the texts in them are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnic.errors import DnicError, SpecError
from dnic.graph.drawing import (
    Box,
    Diagram,
    Edge,
    Node,
    Rectangle,
    Style,
    Text,
    can_render,
    dot_graph,
    render,
)

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
HOSTILE = [
    'a\\N<b>&"quoted"',
    "x\\\\n \\G \\l",
    "&lt;i&gt; &amp; &#65;",
    "<b>not bold</b>",
    "<",
    "layer:n:sw",
    "100% ' ; -> {} []",
    "ключ ĝ … ×",
]
has_dot = shutil.which("dot") is not None


@pytest.fixture(
    params=[pytest.param("dot", marks=pytest.mark.skipif(not has_dot, reason="no dot")), "pure"]
)
def renderer(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The renderer that the test uses; graphviz-pure is found without PATH."""
    if request.param == "pure":
        hide_commands(tmp_path, monkeypatch)
    return str(request.param)


def hide_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def fake_command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)


def diagram(*texts: str) -> Diagram:
    nodes = tuple(
        Node(text, Rectangle(10, 10 + 30 * i, 200, 20), Text(text), Style(), tooltip=text)
        for i, text in enumerate(texts)
    )
    edges = tuple(
        Edge(a.name, b.name, ((210, a.place.middle[1]), (230, 20), (230, 50), (210, 50)), Style())
        for a, b in pairwise(nodes)
    )
    frame = Box("frame", Rectangle(0, 0, 240, 30 * len(texts) + 10), Style(fill="#eeeeee"), nodes)
    return Diagram("a picture", (frame,), (), edges)


def svg_of(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def texts_in(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG\r\n\x1a\n"), (".dot", b"digraph")]
)
def test_files_are_what_their_suffix_says(
    renderer: str, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"picture{suffix}"
    assert render(diagram("first", "second"), path) == path
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 500


def test_a_png_is_drawn_finely(renderer: str, tmp_path: Path) -> None:
    render(diagram("first"), tmp_path / "picture.png")
    width = int.from_bytes((tmp_path / "picture.png").read_bytes()[16:20], "big")
    # 240 points and a margin at 200 dots per inch.
    assert width == pytest.approx(252 * 200 / 72, abs=8)


@pytest.mark.skipif(not has_dot, reason="no dot")
def test_dot_writes_pdf(tmp_path: Path) -> None:
    render(diagram("first"), tmp_path / "picture.PDF")
    assert (tmp_path / "picture.PDF").read_bytes().startswith(b"%PDF-")


def test_the_renderer_is_the_one_asked_for(renderer: str, tmp_path: Path) -> None:
    render(diagram("first"), tmp_path / "picture.svg")
    assert ("graphviz-pure" in (tmp_path / "picture.svg").read_text()) == (renderer == "pure")


@pytest.mark.parametrize("face", ["regular", "bold", "italic"])
@pytest.mark.parametrize("align", ["left", "center", "right"])
def test_texts_are_shown_as_they_are(renderer: str, tmp_path: Path, face: Any, align: Any) -> None:
    nodes = tuple(
        Node(f"n{i}", Rectangle(0, 20 * i, 200, 20), Text(text, align=align, face=face))
        for i, text in enumerate(HOSTILE)
    )
    render(Diagram("hostile", nodes=nodes), tmp_path / "picture.svg")
    assert texts_in(svg_of(tmp_path / "picture.svg")) == HOSTILE


def test_names_and_tooltips_may_hold_anything(renderer: str, tmp_path: Path) -> None:
    render(diagram(*HOSTILE), tmp_path / "picture.svg")
    svg = svg_of(tmp_path / "picture.svg")
    tooltips = [link.get(f"{XLINK}title") for link in svg.iter(f"{SVG}a")]
    # A backslash in a tooltip is shown as a slash.
    assert {text.replace("\\", "/") for text in HOSTILE} <= set(tooltips)
    assert len([g for g in svg.iter(f"{SVG}g") if g.get("class") == "node"]) == len(HOSTILE)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(min_size=1, max_size=20))
def test_any_text_makes_a_valid_picture(tmp_path: Path, text: str) -> None:
    render(diagram(text), tmp_path / "picture.svg")
    (shown,) = texts_in(svg_of(tmp_path / "picture.svg")) or [""]
    kept = "".join(c for c in text if c.isprintable() and not c.isspace())
    assert shown.replace("\N{REPLACEMENT CHARACTER}", "").replace(" ", "") == kept.replace(
        "\N{REPLACEMENT CHARACTER}", ""
    )


def test_names_that_look_alike_stay_apart() -> None:
    names = ["a:b", "a_b", "a&b", 'a"b']
    source = dot_graph(diagram(*names)).source
    assert source.count("shape=box") == len(names)
    for name in ("a_b", '"a_b (2)"', '"a_b (3)"', '"a_b (4)"'):
        assert f"\t\t{name} [" in source


def test_places_are_kept(renderer: str, tmp_path: Path) -> None:
    picture = Diagram(
        "places",
        nodes=(
            Node("a", Rectangle(0, 0, 40, 20), Text("a"), Style()),
            Node("b", Rectangle(100, 50, 40, 20), Text("b"), Style()),
        ),
        edges=(Edge("a", "b", ((40, 10), (120, 10), (120, 50)), Style(), arrow_length=6),),
    )
    render(picture, tmp_path / "picture.svg")
    svg = svg_of(tmp_path / "picture.svg")
    boxes = [
        [tuple(map(float, p.split(","))) for p in polygon.get("points", "").split()]
        for group in svg.iter(f"{SVG}g")
        if group.get("class") == "node"
        for polygon in group.iter(f"{SVG}polygon")
    ]
    corners = [(min(x for x, _ in box), min(y for _, y in box)) for box in boxes]
    assert corners[1][0] - corners[0][0] == pytest.approx(100, abs=0.2)
    assert corners[1][1] - corners[0][1] == pytest.approx(50, abs=0.2)
    line = next(path.get("d", "") for path in svg.iter(f"{SVG}path"))
    numbers = [float(n) for n in line.replace("M", "").replace("C", " ").replace(",", " ").split()]
    assert numbers[0] == pytest.approx(corners[0][0] + 40, abs=0.2)
    assert numbers[-2] == pytest.approx(corners[1][0] + 20, abs=0.2)
    # The line ends where the arrowhead begins.
    assert numbers[-1] == pytest.approx(corners[1][1] - 6, abs=0.5)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".dot"])
def test_equal_diagrams_give_equal_bytes(renderer: str, tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    render(diagram("a", "b", "c"), first)
    render(diagram("a", "b", "c"), second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.skipif(not has_dot, reason="no dot")
def test_a_pdf_does_not_hold_the_time(tmp_path: Path) -> None:
    render(diagram("a"), tmp_path / "picture.pdf")
    content = (tmp_path / "picture.pdf").read_bytes()
    assert b"19700101" in content
    assert f"{datetime.now(UTC):%Y%m%d}".encode() not in content


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.svgz", ".svg"])
def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError) as caught:
        render(diagram("a"), tmp_path / name)
    for suffix in (".svg", ".png", ".pdf", ".dot"):
        assert suffix in str(caught.value.expected)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="folder") as caught:
        render(diagram("a"), tmp_path / "none" / "picture.svg")
    assert str(tmp_path / "none") in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "picture.dot").mkdir()
    with pytest.raises(DnicError, match="cannot write"):
        render(diagram("a"), tmp_path / "picture.dot")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.dot"]


def test_without_dot_a_pdf_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_commands(tmp_path, monkeypatch)
    assert not can_render(".pdf")
    assert can_render(".svg")
    with pytest.raises(DnicError) as caught:
        render(diagram("a"), tmp_path / "picture.pdf")
    assert "install Graphviz" in str(caught.value)
    assert "graphviz-pure" not in str(caught.value)
    assert not (tmp_path / "picture.pdf").exists()


def test_a_broken_dot_gives_way_to_graphviz_pure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = hide_commands(tmp_path, monkeypatch)
    fake_command(commands, "dot", "import sys; sys.exit('no plugins')")
    render(diagram("a"), tmp_path / "picture.svg")
    assert "graphviz-pure" in (tmp_path / "picture.svg").read_text()


def test_the_complaint_of_a_broken_renderer_is_told_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = hide_commands(tmp_path, monkeypatch)
    for name in ("dot", "graphviz-pure"):
        fake_command(commands, name, "import sys; sys.exit('no plugins at all')")
    path = tmp_path / "picture.svg"
    path.write_text("old")
    assert not can_render(".svg")
    with pytest.raises(DnicError, match="no plugins at all"):
        render(diagram("a"), path)
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["commands", "picture.svg"]


def test_without_any_renderer_dot_text_still_works(tmp_path: Path) -> None:
    """In an environment of its own, which sees the packages but no command."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    python = next(home.glob("*/python")).absolute()
    program = (
        "from dnic.graph.drawing import *\n"
        "from dnic.errors import DnicError\n"
        "picture = Diagram('a', nodes=(Node('a', Rectangle(0, 0, 9, 9), Text('a')),))\n"
        "render(picture, 'picture.dot')\n"
        "print(can_render('.dot'), can_render('.svg'), can_render('.png'))\n"
        "try: render(picture, 'picture.svg')\n"
        "except DnicError as error: print(error)\n"
    )
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *packages])}
    done = subprocess.run(
        [python, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("True False False\nerror: cannot draw a .svg file")
    assert "pip install graphviz-pure" in done.stdout
    assert (tmp_path / "picture.dot").read_text().startswith("digraph")
    assert not (tmp_path / "picture.svg").exists()
