"""What must lie on one side of a cut, and what may lie on both.

A tensor that crosses a cut is copied to another device. A change in place there changes the copy,
which is right only when nobody looks at the original, or at another view of it, afterwards. A value
that follows from constants need not cross: whoever uses it computes it again.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn

from dnic.graph.graph import INSIDE_A_CALL
from dnic.trace import TracedModel, draws, recorded, storage_key


def blocked_gaps(nodes: list[fx.Node], traced: TracedModel, free: set[fx.Node]) -> dict[int, str]:
    """Gaps that must not be cut, with the reason."""
    blocked: dict[int, str] = {}
    last_use = _last_uses(nodes)
    for gap in range(1, len(nodes)):
        here, before = recorded(nodes[gap]), recorded(nodes[gap - 1])
        if nodes[gap - 1].op != "placeholder" and here.event[0] == before.event[0]:
            blocked[gap] = INSIDE_A_CALL
    for first, last, why in [*_changes(nodes, last_use), *_held(nodes, traced.module)]:
        blocked.update(dict.fromkeys(range(first + 1, last + 1), why))
    for position, node in enumerate(nodes):
        if recorded(node).mode:
            why = f"{node.name} exists in {recorded(node).mode} mode only"
            blocked.update(dict.fromkeys(range(position + 1, last_use[position] + 1), why))
        sendable = node.op == "get_attr" or node in free or node.name in traced.shapes
        if not sendable:
            for gap in range(position + 1, last_use[position] + 1):
                blocked.setdefault(gap, f"{node.name} is not a tensor of known size")
    return blocked


def free_nodes(nodes: list[fx.Node]) -> set[fx.Node]:
    """Calls whose result follows from constants and buffers alone, and never changes."""
    changed = {storage for node in nodes for storage in recorded(node).mutated}
    free: set[fx.Node] = set()
    fetched: set[fx.Node] = set()
    for node in nodes:
        facts = recorded(node)
        tensor = facts.tensor
        still = tensor is None or (tensor.storage not in changed and not tensor.requires_grad)
        if node.op == "get_attr" and still:
            fetched.add(node)
        if (
            node.op in ("call_function", "call_method")
            and still
            and not facts.mutated
            and not facts.mode
            and not draws(node.target)
            and all(n in free or n in fetched for n in node.all_input_nodes)
        ):
            free.add(node)
    return free


def _changes(nodes: list[fx.Node], last_use: list[int]) -> Iterator[tuple[int, int, str]]:
    """Ranges of operations that a change in place keeps together: first, last, reason.

    Where the tensor is made, it is sent with all changes up to there. Who looks at it afterwards
    must not get it from a stage that lies before the change: either no cut lies between the two, or
    none between the change and the last look, whichever forbids less. The second needs the very
    tensor to be what is changed; another view of the same memory does not see a change elsewhere.
    """
    made: dict[int, list[int]] = {}
    for position, node in enumerate(nodes):
        facts = recorded(node)
        operands = set(node.all_input_nodes)
        for storage in facts.mutated:
            for origin in made.get(storage, []):
                if last_use[origin] <= position:
                    continue  # Nobody looks at it after the change.
                why = f"{node.name} changes {nodes[origin].name} in place"
                before, after = position - origin, last_use[origin] - position
                if nodes[origin] in operands and after < before:
                    yield position, last_use[origin], why
                else:
                    yield origin, position, why
        if facts.tensor is not None and node.op != "get_attr":
            made.setdefault(facts.tensor.storage, []).append(position)


def _held(nodes: list[fx.Node], model: nn.Module) -> Iterator[tuple[int, int, str]]:
    """The same for buffers that the forward changes: all uses of one stay together."""
    changed = {storage for node in nodes for storage in recorded(node).mutated}
    uses: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    position = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
                names.setdefault(storage_key(tensor), f"{node.target}.{name}")
                uses.setdefault(storage_key(tensor), []).append(i)
        if node.op == "get_attr":
            tensor = _fetched(model, str(node.target))
            names.setdefault(storage_key(tensor), str(node.target))
            uses.setdefault(storage_key(tensor), []).extend(position[user] for user in node.users)
    for storage, positions in uses.items():
        if storage in changed and max(positions) > min(positions):
            yield min(positions), max(positions), f"{names[storage]} is changed in place"


def _fetched(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), name)
    return found


def _last_uses(nodes: list[fx.Node]) -> list[int]:
    position = {node: i for i, node in enumerate(nodes)}
    return [max((position[user] for user in node.users), default=i) for i, node in enumerate(nodes)]
