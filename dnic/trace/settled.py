"""Whether a forward that did something else when it ran again has only filled a cache.

`if self.mask is None: self.mask = make_mask(x.shape[1])` makes a mask once and fetches it from then
on. Written down as it ran the first time, the mask is made at every step, which comes to the same.
A forward that sets itself up from data at its first call (an ActNorm) does not: what it computes
from the inputs differs between the two runs.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dnic.trace.functions import draws
from dnic.trace.recording import Recording


def only_filled_a_cache(first: Recording, second: Recording, parameters: set[str]) -> bool:
    """Whether two recordings differ only in how values were made that follow from constants.

    Args:
        first: of the first run.
        second: of the run after it, which fetches what the first one kept.
        parameters: dotted names of the model's parameters and buffers.
    """
    return _from_data(first.graph, parameters) == _from_data(second.graph, parameters)


def state_names(model: nn.Module) -> set[str]:
    """Dotted names of parameters and buffers, tied ones under each of their names."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return names | {name for name, _ in model.named_buffers(remove_duplicate=False)}


def _from_data(graph: fx.Graph, parameters: set[str]) -> list[Any]:
    """Every call whose result follows from inputs, parameters or chance, with its constants."""
    follows: dict[fx.Node, int] = {}
    calls = []
    for node in graph.nodes:
        fetched = node.op == "get_attr" and str(node.target) in parameters
        source = node.op in ("placeholder", "call_module", "output") or fetched
        chance = node.op in ("call_function", "call_method") and draws(node.target)
        if source or chance or any(n in follows for n in node.all_input_nodes):
            follows[node] = len(follows)
            given = fx.map_arg((node.args, node.kwargs), lambda n: f"%{follows.get(n, 'constant')}")
            calls.append((node.op, node.target, given))
    return calls
