"""Activation recomputation: keep what a block is given, compute the rest again going back.

`torch.utils.checkpoint` does it, random numbers included, so a run has the bits that it would have
without; it takes one more forward pass. Where a stage holds the entries of a list or sequence of
modules (transformer blocks, residual blocks), each of these is computed again by itself, and memory
holds their inputs and the inside of one. A stage without such parts is computed again in one piece,
which saves memory only where several microbatches are under way (torch's pipelines).

What torch's function leaves open is whatever a forward changes besides its result, because that
happens twice. The running statistics of BatchNorm and InstanceNorm are kept from it: the second
time the layers write to copies. Any other buffer that changes (spectral norm), and an input that is
changed in place, is refused. Not noticed: plain attributes that a forward counts up, and random
numbers from outside torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from dnic.errors import RuntimeFault
from dnic.runtime.stage import Container

_LISTS = (Container, nn.ModuleList, nn.ModuleDict)
_WHERE = "plan.yaml: train: recompute"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def recompute_blocks(module: nn.Module, *, whole: bool = False) -> None:
    """Makes a module's forward keep the inputs of its blocks alone.

    Args:
        module: a stage, or the undivided model; changed.
        whole: treat it as one block.
    """
    found = [] if whole else blocks(module)
    for block in found or [module]:
        block.forward = _recomputed(block, block.forward)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost entries of lists and sequences that hold modules themselves.

    A module without such entries inside is one block, unless it has no parts at all.
    """
    found: list[nn.Module] = []
    for name, child in module.named_children():
        if not list(child.children()) or isinstance(child, torch.jit.ScriptModule):
            continue
        called = not isinstance(child, _LISTS)
        inside = [] if called and name.isdigit() else blocks(child)
        found += inside or ([child] if called else [])
    return found


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    norms = [part for part in block.modules() if isinstance(part, _NormBase)]
    theirs = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _own_statistics(norms)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        buffers = {
            name: buffer for name, buffer in block.named_buffers() if id(buffer) not in theirs
        }
        given = list(_tensors((args, kwargs)))
        before = [tensor._version for tensor in (*buffers.values(), *given)]
        output = checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        now = dict(block.named_buffers())
        for (name, buffer), version in zip(buffers.items(), before, strict=False):
            if now.get(name) is not buffer or buffer._version != version:
                raise _changes(block, f"its buffer {name}")
        if [tensor._version for tensor in given] != before[len(buffers) :]:
            raise _changes(block, "an input in place")
        return output

    return run


@contextmanager
def _own_statistics(norms: Iterable[nn.Module]) -> Iterator[None]:
    """While a forward runs the second time, running statistics are copies that are dropped.

    In training a layer's output does not depend on them. They cannot just be left out, or written
    back: the second run has to keep the same tensors for the backward pass as the first.
    """
    held = [
        (norm, name, buffer)
        for norm in norms
        if norm.training
        for name in _STATISTICS
        if (buffer := norm._buffers.get(name)) is not None
    ]
    try:
        for norm, name, buffer in held:
            norm._buffers[name] = buffer.clone()
        yield
    finally:
        for norm, name, buffer in held:
            norm._buffers[name] = buffer


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)


def _changes(block: nn.Module, what: str) -> RuntimeFault:
    return RuntimeFault(
        f"the forward of {type(block).__name__} changes {what}: computed twice, it would do so "
        "twice",
        where=_WHERE,
        expected="a forward that changes nothing but the statistics of BatchNorm",
        hint="recompute: false, or the numbers of the other stages",
    )
