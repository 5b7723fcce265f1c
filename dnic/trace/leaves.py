"""Which modules a recording writes down as one node."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn

# Modules of torch.nn whose forward is a plain loop over children: a cut may fall between these.
OPENED = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)

LeafRule = Callable[[nn.Module, str], bool]


def is_library_leaf(module: nn.Module) -> bool:
    """A module of `torch.nn` itself, containers aside."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, OPENED)


def fine_leaves(whole: Collection[str]) -> LeafRule:
    """Modules of torch.nn, and those at the paths in `whole`."""

    def rule(module: nn.Module, path: str) -> bool:
        return path in whole or is_library_leaf(module)

    return rule


def coarse_leaves(opened: Collection[str], whole: Collection[str]) -> LeafRule:
    """Every module that no cut opens."""
    fine = fine_leaves(whole)

    def rule(module: nn.Module, path: str) -> bool:
        return path not in opened or fine(module, path)

    return rule
