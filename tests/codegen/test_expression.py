"""Recorded operations as source text."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from dnic.codegen.expression import Names, access, call_text
from dnic.trace import BatchSize, ModeSwitch


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("conv", "self.conv"),
        ("layers.3.conv", "self.layers[3].conv"),
        ("0.1", "self[0][1]"),
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
