"""Recorded operations as source text."""

from __future__ import annotations

import fractions
import operator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from dnic.codegen.expression import Names, access, call_text
from dnic.spec.modelfile import load_model_file
from dnic.trace import BatchShare, BatchSize, ModeSwitch


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("conv", "self.conv"),
        ("layers.3.conv", "self.layers[3].conv"),
        ("0.1", "self[0][1]"),
        ("heads.next-token", 'self.heads["next-token"]'),
        ("heads.class.x", 'self.heads["class"].x'),
    ],
)
def test_access(path: str, text: str) -> None:
    assert access(path) == text


@pytest.mark.parametrize(
    ("op", "target", "args", "kwargs", "text"),
    [
        ("call_function", operator.add, ("x", 1), {}, "x + 1"),
        ("call_function", operator.neg, ("x",), {}, "-x"),
        (
            "call_function",
            operator.getitem,
            ("x", (slice(None), 0, ..., None)),
            {},
            "x[:, 0, ..., None]",
        ),
        ("call_function", operator.getitem, ("x", slice(1, None, 2)), {}, "x[1::2]"),
        ("call_function", operator.setitem, ("x", 0, 2.5), {}, "x[0] = 2.5"),
        ("call_function", getattr, ("x", "T"), {}, "x.T"),
        ("call_function", F.relu, ("x",), {"inplace": False}, "F.relu(x)"),
        ("call_function", F.relu, ("x",), {"inplace": True}, "F.relu(x, inplace=True)"),
        ("call_function", torch.cat, (["x", "x"],), {"dim": -1}, "torch.cat([x, x], dim=-1)"),
        ("call_method", "view", ("x", BatchSize(8, 2), -1), {}, "x.view(2 * batch, -1)"),
        ("call_method", "view", ("x", BatchSize(9, 2, 1), -1), {}, "x.view(2 * batch + 1, -1)"),
        ("call_method", "mul", ("x", BatchShare(0.5, 2.0)), {}, "x.mul(2.0 / batch)"),
        ("call_function", operator.truediv, ("x", BatchSize(8, 2)), {}, "x / (2 * batch)"),
        ("call_function", operator.mul, (BatchShare(0.5, 2.0), "x"), {}, "(2.0 / batch) * x"),
        ("call_function", operator.sub, ("x", BatchSize(3, 1, -1)), {}, "x - (batch - 1)"),
        ("call_function", operator.pow, (-2, "x"), {}, "(-2) ** x"),
        (
            "call_function",
            operator.mul,
            ("x", ModeSwitch(2, 3)),
            {},
            "x * (2 if self.training else 3)",
        ),
        (
            "call_function",
            operator.getitem,
            ("x", slice(1, BatchSize(5, 1, 1))),
            {},
            "x[1:batch + 1]",
        ),
        (
            "call_function",
            F.max_pool2d,
            ("x", 2),
            {"stride": None, "padding": 1},
            "F.max_pool2d(x, 2, padding=1)",
        ),
        ("call_method", "to", ("x", torch.float16), {}, "x.to(torch.float16)"),
        ("call_method", "to", ("x", torch.device("cpu")), {}, "x.to(here.device)"),
        (
            "call_method",
            "masked_fill",
            ("x", "x", float("-inf")),
            {},
            'x.masked_fill(x, float("-inf"))',
        ),
        (
            "call_function",
            F.dropout,
            ("x", 0.1),
            {"training": ModeSwitch(True, False)},
            "F.dropout(x, 0.1, training=self.training)",
        ),
        (
            "call_method",
            "add",
            ("x",),
            {"alpha": ModeSwitch(2, 3)},
            "x.add(alpha=(2 if self.training else 3))",
        ),
        (
            "call_module",
            "blocks.2",
            ("x",),
            {"mode": 'a"b\n'},
            'self.blocks[2](x, mode="a\\"b\\n")',
        ),
    ],
)
def test_calls(op: str, target: object, args: tuple, kwargs: dict, text: str) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")

    def noded(value: object) -> object:
        if isinstance(value, list):
            return [noded(v) for v in value]
        return x if value == "x" and isinstance(value, str) else value

    node = graph.create_node(op, target, tuple(noded(a) for a in args), kwargs)
    names = Names({x: "x"}, device="here.device")
    assert call_text(node, names) == text


def test_text_of_a_user_cannot_leave_its_string() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    evil = '"); import os; os.system("true"); ("'
    node = graph.create_node("call_method", "to", (x, evil), {})
    text = call_text(node, Names({x: "x"}, device="x.device"))
    assert eval(text, {"x": type("X", (), {"to": lambda self, a: a})()}) == evil


def test_arguments_that_are_none_by_default_are_not_said() -> None:
    class Layer(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, mask: object = None, cache: object = None, *, scale: float = 1.0
        ) -> torch.Tensor:
            return x

    model = torch.nn.Sequential(Layer())

    def said(*args: object, **kwargs: object) -> str:
        graph = fx.Graph()
        x = graph.placeholder("x")
        node = graph.call_module("0", (x, *args), kwargs)
        return call_text(node, Names({x: "x"}, device="x.device", model=model))

    assert said(None, None) == "self[0](x)"
    assert said(None, 1) == "self[0](x, None, 1)", "what stands before a value stays"
    assert said(mask=None, scale=1.0) == "self[0](x)"
    assert said(scale=1) == "self[0](x, scale=1)", "an int is no float"
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.clamp, (x, None, 2.0))
    assert call_text(node, Names({x: "x"}, device="")) == "torch.clamp(x, None, 2.0)"


def test_classes_are_imported_by_their_outermost_name(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Identity):\n"
        "    class Answer(dict): pass\n"
        "def example_inputs(): return torch.ones(1)\n"
    )
    answer = load_model_file(file).module.Net.Answer
    for kind, text, line in (
        (answer, "Net.Answer(x=x)", "from model import Net"),
        (fractions.Fraction, "Fraction(x=x)", "from fractions import Fraction"),
    ):
        graph = fx.Graph()
        x = graph.placeholder("x")
        names = Names({x: "x"}, device="")
        assert call_text(graph.call_function(kind, (), {"x": x}), names) == text
        assert names.imports == {line}
