"""Reading YAML into plain values, with the line of every key.

PyYAML's `safe_load` drops the line numbers, keeps the last of two equal keys, expands aliases
without limit and reads YAML 1.1, where `1e-3` is a word, `no` is false and `010` is eight. Here its
composer alone is used, with the scalars of YAML 1.2's core schema: null, true, false, integers,
floats, words. No tag can name a Python type, so nothing in a file can run code. Aliases and merge
keys (`<<`) work, within a bound on depth and on the number of values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from dnic.errors import SpecError
from dnic.spec.origin import KeyPath, Origin, dotted

_DEEPEST = 32
_MOST_VALUES = 10_000
_TAG = "tag:yaml.org,2002:"


class _Composer(yaml.SafeLoader):
    """PyYAML's composer with the core schema's scalars and a bound on depth."""

    depth = 0
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"nested deeper than {_DEEPEST} levels", self.get_mark()
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|[-+]?[1-9][0-9]*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Composer.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class _Reader:
    """Turns the nodes of one file into values and notes their lines."""

    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    values: int = 0

    def error(self, problem: str, node: yaml.Node, expected: str, hint: str = "") -> SpecError:
        where = f"{self.name}:{_line(node)}"
        return SpecError(problem, where=where, expected=expected, hint=hint)

    def value(self, node: yaml.Node, path: KeyPath, depth: int = 0) -> object:
        self.values += 1
        if self.values > _MOST_VALUES or depth > _DEEPEST:
            raise self.error(
                "aliases make this spec too large",
                node,
                f"at most {_MOST_VALUES} values, at most {_DEEPEST} levels deep",
            )
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            found = {}
            for key, (key_node, value_node) in self.pairs(node, path, depth).items():
                self.lines.setdefault((*path, key), _line(key_node))
                found[key] = self.value(value_node, (*path, key), depth + 1)
            return found
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            for index, entry in enumerate(node.value):
                self.lines.setdefault((*path, index), _line(entry))
            return [
                self.value(entry, (*path, index), depth + 1)
                for index, entry in enumerate(node.value)
            ]
        return self.scalar(node, path)

    def pairs(
        self, node: yaml.MappingNode, path: KeyPath, depth: int
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Entries of a mapping; its own before those that `<<` merges in."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                many = isinstance(value_node, yaml.SequenceNode)
                merged += value_node.value if many else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error("a key cannot be a list or a mapping", key_node, "a word")
            key = key_node.value
            if key in own:
                first = _line(own[key][0])
                raise self.error(
                    f"{dotted((*path, key))} is given twice",
                    key_node,
                    f"every key once; it is already on line {first}",
                )
            own[key] = (key_node, value_node)
        for source in merged:
            self.values += 1
            if not isinstance(source, yaml.MappingNode):
                raise self.error("<< cannot merge this", source, "an alias of a mapping")
            if self.values > _MOST_VALUES or depth > _DEEPEST:
                raise self.error("<< merges without end", source, "a mapping without itself in it")
            for key, pair in self.pairs(source, path, depth + 1).items():
                own.setdefault(key, pair)
        return own

    def scalar(self, node: yaml.Node, path: KeyPath) -> object:
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        kind = node.tag.removeprefix(_TAG)
        try:
            if text is not None:
                return _scalar(kind, text)
        except ValueError:
            pass
        raise self.error(
            f"{dotted(path) or 'a spec'} cannot be read as {node.tag.replace(_TAG, '!!')}",
            node,
            "a plain value",
        )


def _scalar(kind: str, text: str) -> object:
    """The value of a scalar; ValueError when its tag is not known or does not fit."""
    if kind == "str":
        return text
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "null" and text.lower() in ("", "~", "null"):
        return None
    raise ValueError(f"not a {kind}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _composed(text: str, name: str) -> yaml.Node | None:
    """The root node of the one document."""
    composer: _Composer | None = None
    try:
        composer = _Composer(text)
        return composer.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise _invalid("a character that YAML does not allow", f"{name}:{line}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise _invalid(_told(error), where) from error
    # PyYAML turns escapes and version numbers into characters and integers unchecked.
    except (ValueError, OverflowError) as error:
        where = f"{name}:{composer.get_mark().line + 1}" if composer else name
        raise _invalid("an escape or a number that YAML does not allow", where) from error


def _told(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's message, with the line where what it was reading began."""
    begin, end = error.context_mark, error.problem_mark
    far = begin is not None and end is not None and begin.line != end.line
    begun = f" begun on line {begin.line + 1}" if far and begin else ""
    return ", ".join(filter(None, (error.context and f"{error.context}{begun}", error.problem)))


def _invalid(problem: str, where: str) -> SpecError:
    return SpecError(f"not valid YAML: {problem}", where=where)


def read_yaml(text: str, name: str) -> tuple[object, Origin]:
    """The value of the one document in `text`, None when it is empty.

    Raises:
        SpecError: no valid YAML, a key given twice, a tag, too large.
    """
    node = _composed(text, name)
    reader = _Reader(name)
    value = None if node is None else reader.value(node, ())
    return value, Origin(name, reader.lines)
