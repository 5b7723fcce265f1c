"""The graph being written, and which node each tensor came from.

A recorded value is known by the identity of its tensor; every tensor is kept alive until the
recording ends, so that no identity is used twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnic.trace.frames import assigned_names, user_line
from dnic.trace.obstacle import Unencodable
from dnic.trace.recorded import KEY, Recorded, TensorFacts, recorded, storage_key, tensors_in
from dnic.trace.recording import PLAIN, RESERVED, Calls, Recording, attributes, field_of, item


class Book:
    """Writes nodes.

    Args:
        model: the user's model.
        fine: the calls of the finest recording, whose names are kept; None for that one itself.

    Attributes:
        recording: what has been written.
        scopes: dotted path and class of the modules whose forward runs, innermost last.
        event: number of the next call.
        tainted: nodes whose values follow from the inputs, the parameters or from chance.
        unsized: nodes whose sizes follow from values.
    """

    def __init__(self, model: nn.Module, fine: Calls | None) -> None:
        self.fine = fine
        self.recording = Recording(fx.Graph(), Calls())
        self.scopes: list[tuple[str, str]] = [("", type(model).__name__)]
        self.event = 0
        self.tainted: set[fx.Node] = set()
        self.unsized: set[fx.Node] = set()
        self._attributes = attributes(model)
        self._nodes: dict[int, fx.Node] = {}
        self._alive: dict[int, list[Tensor]] = {}
        self._homes: dict[int, str] = {}

    @property
    def scope(self) -> str:
        """Dotted path of the module whose forward runs."""
        return self.scopes[-1][0]

    def is_tainted(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor differ from batch to batch or step to step."""
        node = self._nodes.get(id(tensor))
        return (node is not None and node in self.tainted) or id(tensor) in self._attributes

    def is_unsized(self, tensor: Tensor) -> bool:
        """Whether the sizes of a tensor differ from batch to batch."""
        node = self._nodes.get(id(tensor))
        return node is not None and node in self.unsized and tensor.dim() > 0

    def facts(self, **known: Any) -> Recorded:
        """Facts of something that runs here and now; `known` are those that it has."""
        scope, module_class = self.scopes[-1]
        given = {
            "scope": scope,
            "module_class": module_class,
            "event": (self.event, self.event),
            "source": user_line(),
        }
        return Recorded(**{**given, **known})

    def write_input(self, name: str, value: Tensor) -> None:
        """A placeholder."""
        node = self.node("placeholder", name, (), {}, name)
        node.meta[KEY] = Recorded(module_class=self.scopes[0][1], tensor=TensorFacts.of(value))
        self.tainted.add(node)
        self._name_tensor(value, node)

    def write_output(self, output: Any) -> None:
        """The output; objects in it that cannot be written down (a cache) are left out."""
        node = self.recording.graph.output(self.encode(_without_objects(output)))
        node.meta[KEY] = Recorded(module_class=self.scopes[0][1], event=(self.event, self.event))

    def node(self, op: str, target: Any, args: Any, kwargs: Any, stem: str) -> fx.Node:
        """A new node, called `stem` or nearly so."""
        name = stem if stem.isidentifier() else f"_{stem}"
        if name in RESERVED:
            name += "_"
        node = self.recording.graph.create_node(op, target, args, kwargs, name=name)
        if op in ("call_function", "call_method") and target not in (item, field_of):
            self.recording.calls.names[self.event] = node.name
        return node

    def leave(self, out: Any) -> None:
        """The innermost module's call ends: its results are now its caller's."""
        left = self.scope
        self.scopes.pop()
        for tensor in tensors_in(out):
            home = self._homes.get(id(tensor), "")
            self._check_home(home, left)
            if home not in ("", *_above(self.scope)):
                self._homes[id(tensor)] = self.scope

    def refresh(self, storages: set[int], tainted: bool) -> None:
        """Look again at the tensors that an operation changed in place."""
        for storage in storages:
            for tensor in self._alive.get(storage, ()):
                node = self._nodes[id(tensor)]
                node.meta[KEY] = replace(recorded(node), tensor=TensorFacts.of(tensor))
                if tainted:
                    self.tainted.add(node)

    def name_result(self, out: Any, node: fx.Node) -> None:
        """Remember which node each tensor of a result comes from, item by item."""
        if isinstance(out, Tensor):
            self._name_tensor(out, node)
            return
        variables = assigned_names() if self.fine is None and isinstance(out, tuple | list) else ()
        for kind, key, result in _parts(out):
            if not tensors_in(result):
                continue
            name = f"{node.name}_{key}"
            if isinstance(key, int) and len(variables) == len(out):
                name = variables[key]
            if self.fine is not None:
                name = self.fine.items.get((self.event, key), name)
            child = self.node("call_function", kind, (node, key), {}, name)
            self.recording.calls.items[self.event, key] = child.name
            child.meta[KEY] = replace(
                recorded(node),
                tensor=TensorFacts.of(result) if isinstance(result, Tensor) else None,
                items=0,
                flops=0,
                bytes_read=0,
                mutated=frozenset(),
            )
            for marked in (self.tainted, self.unsized):
                if node in marked:
                    marked.add(child)
            self.name_result(result, child)

    def encode(self, value: Any) -> Any:
        """A structure with every tensor in it replaced by its node.

        Raises:
            Unencodable: something in it is neither a tensor nor a plain value.
        """
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._construct(type(value), dict(zip(value._fields, value, strict=True)))
        if is_dataclass(value) and not isinstance(value, type):
            present = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
            return self._construct(type(value), {k: v for k, v in present.items() if v is not None})
        if isinstance(value, Mapping):
            return {key: self.encode(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            plain = tuple if isinstance(value, tuple) else list
            return plain(self.encode(entry) for entry in value)
        if isinstance(value, slice):
            return slice(*(self.encode(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, PLAIN):
            return value
        raise Unencodable(f"a value of type {type(value).__name__}", self.scope, user_line())

    def _construct(self, kind: type, items: dict[str, Any]) -> fx.Node:
        """A node that builds a dataclass or named tuple, such as Hugging Face's outputs."""
        node = self.recording.graph.call_function(
            kind, (), {k: self.encode(v) for k, v in items.items()}
        )
        node.meta[KEY] = self.facts()
        return node

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self._nodes:
            self._check_home(self._homes.get(id(tensor), ""), self.scope)
            return self._nodes[id(tensor)]
        path = self._attributes.get(id(tensor))
        if path is None:
            raise Unencodable(
                "a tensor that neither the model holds nor a torch function made",
                self.scope,
                user_line(),
            )
        node = self.node("get_attr", path, (), {}, path.replace(".", "_"))
        node.meta[KEY] = self.facts(scope=path.rpartition(".")[0], tensor=TensorFacts.of(tensor))
        self.tainted.add(node)
        self._name_tensor(tensor, node)
        return node

    def _check_home(self, home: str, scope: str) -> None:
        """A tensor of `home` that is met in `scope`: did it leave a module by a hook, an attribute?

        In a coarser recording these modules must be opened, or it would not be seen.
        """
        for path in _above(home):
            if path not in _above(scope):
                self.recording.calls.opaque.add(path)

    def _name_tensor(self, tensor: Tensor, node: fx.Node) -> None:
        if id(tensor) not in self._nodes:
            self._alive.setdefault(storage_key(tensor), []).append(tensor)
            self._homes[id(tensor)] = self.scope if node.op != "get_attr" else ""
        self._nodes[id(tensor)] = node


@lru_cache(maxsize=65536)
def _above(path: str) -> tuple[str, ...]:
    """The path itself and those of the modules around it, the model's own ("") left out."""
    parts = path.split(".") if path else []
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))


def is_plain(value: Any) -> bool:
    """Whether a value, tensors aside, can be written down."""
    if isinstance(value, (Tensor, *PLAIN)):
        return True
    if isinstance(value, slice):
        return True
    if is_dataclass(value) and not isinstance(value, type):
        return all(is_plain(getattr(value, f.name)) for f in fields(value) if f.init)
    if isinstance(value, Mapping):
        return all(is_plain(entry) for entry in value.values())
    if isinstance(value, tuple | list):
        return all(is_plain(entry) for entry in value)
    return False


def _without_objects(value: Any) -> Any:
    """An output without the entries that cannot be written down; positions stay."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changed = {k: _without_objects(v) if is_plain(v) else None for k, v in kept.items()}
        return type(value)(**changed)
    if isinstance(value, Mapping):
        return {k: _without_objects(v) for k, v in value.items() if is_plain(v)}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_without_objects(v) if is_plain(v) else None for v in value)
    return value


def _parts(out: Any) -> Iterator[tuple[Any, Any, Any]]:
    """How to get at each entry of a result, under which key, and the entry."""
    if isinstance(out, Mapping):
        yield from ((item, key, value) for key, value in out.items())
    elif isinstance(out, tuple | list):
        yield from ((item, index, value) for index, value in enumerate(out))
    elif is_dataclass(out) and not isinstance(out, type):
        yield from ((field_of, f.name, getattr(out, f.name)) for f in fields(out))
