"""Draws a diagram as SVG, PNG, PDF or dot.

Graphviz's own layout moves a whole figure when one label grows and differs between its versions.
A figure for a paper wants aligned columns, so whoever makes a `Diagram` places everything, and
Graphviz (engine `nop2`, which keeps given places) only draws: the same picture from every
renderer. The dot text still is a proper graph, with clusters, nodes and edges between them.

Two renderers serve: the system's `dot`, and the command `graphviz-pure` of the PyPI package of that
name, which writes no PDF. This module knows nothing of plans, measures no text, and does not check
that what it is given fits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from itertools import groupby
from math import dist
from pathlib import Path

import graphviz

from dnic.errors import DnicError, SpecError
from dnic.graph.diagram import Box, Diagram, Edge, Node, Point, Rectangle, Style, Text

__all__ = [
    "Box",
    "Diagram",
    "Edge",
    "Node",
    "Point",
    "Rectangle",
    "Style",
    "Text",
    "can_render",
    "dot_graph",
    "render",
]

SUFFIXES = (".svg", ".png", ".pdf", ".dot")
PNG_DOTS_PER_INCH = 200
RENDER_TIMEOUT_S = 120
# The same metrics under names that each renderer knows: for a PNG, an old `dot` replaces Helvetica
# with a wider font, graphviz-pure knows no bold Arial. Only Helvetica gets a fallback in an SVG.
HELVETICA = {"regular": "Helvetica", "bold": "Helvetica-Bold", "italic": "Helvetica-Oblique"}
ARIAL = {"regular": "Arial", "bold": "Arial Bold", "italic": "Arial Italic"}


def dot_graph(diagram: Diagram, fonts: Mapping[str, str] = HELVETICA) -> graphviz.Digraph:
    """The diagram as a dot graph in which everything has its place.

    `fonts` gives the name of a font for each face of `Text`.
    """
    names = _Names()
    graph = graphviz.Digraph(
        name=names[diagram.title],
        graph_attr={
            "layout": "nop2",
            "pad": "0.08",
            "bgcolor": "white",
            "outputorder": "edgesfirst",
        },
        node_attr={"fixedsize": "true", "margin": "0"},
    )
    for box in diagram.boxes:
        _add_box(graph, box, names, fonts)
    for node in diagram.nodes:
        _add_node(graph, node, names, fonts)
    for edge in diagram.edges:
        _add_edge(graph, edge, names)
    return graph


def render(diagram: Diagram, path: str | Path) -> Path:
    """Writes the diagram; the suffix of `path` names the format. Equal diagrams, equal bytes.

    Returns:
        The path. The file appears whole or not at all.

    Raises:
        SpecError: for an unknown suffix or a folder that does not exist.
        DnicError: when no installed renderer writes this format.
    """
    path = Path(path)
    check_target(path)
    suffix = path.suffix.lower()
    if suffix == ".dot":
        _write_whole(path, dot_graph(diagram).source.encode())
    else:
        _write_whole(path, _drawn(diagram, suffix, path))
    return path


def check_target(path: Path) -> None:
    """Whether a picture can be written there.

    Raises:
        SpecError: for an unknown suffix or a folder that does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(
            f"cannot draw to a file that ends in {path.suffix!r}",
            where=str(path),
            expected="a file name that ends in " + ", ".join(SUFFIXES),
        )
    if not path.parent.is_dir():
        raise SpecError(
            "the folder of the picture does not exist",
            where=str(path),
            hint=f"make the folder {path.parent} first",
        )


def can_render(suffix: str = ".svg") -> bool:
    """Whether this machine can draw files of this suffix (`.dot` always)."""
    if suffix == ".dot":
        return True
    return any(_run(command, "digraph {}", suffix)[0] for command in _renderers(suffix))


class _Names(dict[str, str]):
    """Node names as dot knows them.

    A colon would start a port in an edge, and renderers disagree on the characters of XML in
    names, so these become underscores; a number keeps names apart that this makes equal.
    """

    def __missing__(self, name: str) -> str:
        base = "".join("_" if c in ":&<>\"'\\" or not c.isprintable() else c for c in name) or "_"
        known, candidate, count = set(self.values()), base, 1
        while candidate in known:
            count += 1
            candidate = f"{base} ({count})"
        self[name] = candidate
        return candidate


def _add_box(graph: graphviz.Digraph, box: Box, names: _Names, fonts: Mapping[str, str]) -> None:
    place = box.place
    with graph.subgraph(name="cluster " + names[box.name]) as cluster:
        cluster.attr(
            "graph",
            bb=",".join(_number(x) for x in (place.left, -place.bottom, place.right, -place.top)),
            label="",
            **_outline(box.style),
            tooltip=_hint(box.tooltip or box.name),
        )
        for inner in box.boxes:
            _add_box(cluster, inner, names, fonts)
        for node in box.nodes:
            _add_node(cluster, node, names, fonts)


def _add_node(graph: graphviz.Digraph, node: Node, names: _Names, fonts: Mapping[str, str]) -> None:
    x, y = node.place.middle
    attributes = {
        "pos": f"{_number(x)},{_number(-y)}",
        "width": _number(node.place.width / 72),
        "height": _number(node.place.height / 72),
        "shape": node.shape if node.style else "plaintext",
        "label": "",
        "tooltip": _hint(node.tooltip or node.name),
    }
    if node.style:
        attributes |= _outline(node.style)
    if node.text:
        text = node.text
        # With a line end even in the middle, no text looks like a label in HTML.
        line_end = {"left": r"\l", "center": r"\n", "right": r"\r"}[text.align]
        attributes |= {
            "label": _escaped(text.text) + line_end,
            "fontname": fonts[text.face],
            "fontsize": _number(text.size),
            "fontcolor": text.color,
        }
    graph.node(names[node.name], **attributes)


def _add_edge(graph: graphviz.Digraph, edge: Edge, names: _Names) -> None:
    style = edge.style
    graph.edge(
        names[edge.tail],
        names[edge.head],
        pos=_spline(edge),
        color=style.stroke,
        penwidth=_number(style.width),
        style=style.dash,
        arrowhead="normal" if edge.arrow_length else "none",
        arrowsize=_number(edge.arrow_length / 10),
        tooltip=_hint(edge.tooltip or f"{edge.tail} to {edge.head}"),
    )


def _outline(style: Style) -> dict[str, str]:
    words = [style.dash, "filled"] + ["rounded"] * style.rounded
    return {
        "style": ",".join(words),
        "color": "transparent" if style.stroke == "none" else style.stroke,
        "fillcolor": "transparent" if style.fill == "none" else style.fill,
        "penwidth": _number(style.width),
    }


def _spline(edge: Edge) -> str:
    """The points as Graphviz wants them: Bezier curves that end where the arrowhead begins."""
    points = [point for point, _ in groupby(edge.points)]
    start = ""
    if edge.arrow_length:
        tip = points[-1]
        points[-1] = _towards(tip, points[-2], edge.arrow_length)
        start = f"e,{_place(tip)} "
    curve = [points[0]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(edge.radius, dist(before, corner) / 2, dist(corner, after) / 2)
        entry, leave = _towards(corner, before, radius), _towards(corner, after, radius)
        curve += [*_straight(curve[-1], entry), *_bend(entry, corner, leave)]
    curve += _straight(curve[-1], points[-1])
    return start + " ".join(map(_place, curve))


def _straight(start: Point, end: Point) -> Iterator[Point]:
    """The two control points and the end of a straight Bezier curve."""
    for share in (1 / 3, 2 / 3, 1):
        yield (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))


def _bend(start: Point, corner: Point, end: Point) -> tuple[Point, Point, Point]:
    """The Bezier curve nearest to a quarter of a circle (0.5523 of the way to the corner)."""
    first = (start[0] + 0.5523 * (corner[0] - start[0]), start[1] + 0.5523 * (corner[1] - start[1]))
    second = (end[0] + 0.5523 * (corner[0] - end[0]), end[1] + 0.5523 * (corner[1] - end[1]))
    return first, second, end


def _towards(start: Point, end: Point, length: float) -> Point:
    """The point `length` points from `start` on the way to `end`."""
    share = length / (dist(start, end) or 1.0)
    return (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))


def _place(point: Point) -> str:
    # dot counts upwards, a page downwards.
    return f"{_number(point[0])},{_number(-point[1])}"


def _number(value: float) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:g}"


def _escaped(text: str) -> str:
    """Text that dot shows as it is: it reads `&...;` as an entity, a backslash as an escape."""
    escaped: str = graphviz.escape(_printable(text).replace("&", "&amp;"))
    return escaped


def _hint(text: str) -> str:
    # Renderers read the escapes of a tooltip once or twice, so it goes without.
    return _escaped(text.replace("\\", "/"))


def _printable(text: str) -> str:
    """The text on one line, with a mark for what XML cannot hold."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in spaced)


def _drawn(diagram: Diagram, suffix: str, path: Path) -> bytes:
    hint = (
        "install Graphviz, which brings `dot`"
        if suffix == ".pdf"
        else "pip install graphviz-pure, or install Graphviz, which brings `dot`"
    )
    failure = "no renderer is installed that writes it"
    for command in _renderers(suffix):
        fonts = ARIAL if Path(command).stem == "dot" and suffix != ".svg" else HELVETICA
        picture, complaint = _run(command, dot_graph(diagram, fonts).source, suffix)
        if picture:
            return picture
        failure = f"{Path(command).name} failed: {complaint}"
    raise DnicError(
        f"cannot draw a {suffix} file: {failure}",
        where=str(path),
        hint=hint + "; a file that ends in .dot needs neither",
    )


def _renderers(suffix: str) -> Iterator[str]:
    """Commands that may write this format, best first."""
    # PATH need not hold the folder of the environment that this interpreter runs in.
    folders = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    names = ("dot",) if suffix == ".pdf" else ("dot", "graphviz-pure")
    for name in names:
        if command := shutil.which(name, path=folders):
            yield command


def _run(command: str, source: str, suffix: str) -> tuple[bytes, str]:
    """The picture (empty on failure) and what the renderer complained of."""
    arguments = [command, f"-T{suffix[1:]}"]
    if suffix == ".png":
        arguments.append(f"-Gdpi={PNG_DOTS_PER_INCH}")
    try:
        done = subprocess.run(
            arguments,
            input=source.encode(),
            capture_output=True,
            timeout=RENDER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return b"", str(error)
    complaint = done.stderr.decode(errors="replace").strip().splitlines()
    # A PDF carries the time at which it was made; another of equal length keeps its offsets valid.
    picture = re.sub(rb"(/CreationDate \(D:)\d{14}", rb"\g<1>19700101000000", done.stdout)
    return (picture if done.returncode == 0 else b"", complaint[-1] if complaint else "")


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise DnicError(f"cannot write the picture: {error.strerror}", where=str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
