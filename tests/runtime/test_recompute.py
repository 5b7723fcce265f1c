"""Recomputation gives the same bits, holds less, and refuses what it would do twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dnic.errors import RuntimeFault
from dnic.runtime.recompute import blocks, recompute_blocks
from dnic.runtime.stage import Stage


def block(size: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, size),
        nn.BatchNorm1d(size),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(size, size),
    )


class Net(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.layers = nn.ModuleList(block() for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        out: Tensor = self.head(x)
        return out


def trained(module: nn.Module, steps: int = 3) -> dict[str, Any]:
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            module.eval()
            module(torch.randn(5, 6))
            module.train()
    return {**module.state_dict(), "random": torch.get_rng_state()}


def net() -> Net:
    torch.manual_seed(1)
    return Net()


@pytest.mark.parametrize("whole", [False, True])
def test_the_same_bits_with_dropout_and_batchnorm(whole: bool) -> None:
    plain, again = net(), net()
    recompute_blocks(again, whole=whole)
    expected, state = trained(plain), trained(again)
    assert expected.keys() == state.keys()
    assert int(state["layers.0.1.num_batches_tracked"]) == 3
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_blocks_are_entries_of_lists_that_hold_modules() -> None:
    model = net()
    assert blocks(model) == [*model.layers, model.head]
    stage = Stage(model, "stem", "layers.0", "layers.2")
    assert blocks(stage) == [model.layers[0], model.layers[2]]
    opened = Stage(model, "layers.1.0", "layers.1.2", "head.1")
    assert blocks(opened) == []
    assert blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


def held_bytes(module: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(torch.randn(64, 6))
    assert out.requires_grad
    return sum(kept.values())


def test_it_holds_the_blocks_inputs_alone() -> None:
    plain, again = net(), net()
    recompute_blocks(again)
    assert held_bytes(again) < 0.4 * held_bytes(plain)


class Changes(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "buffer in place":
            self.count += 1
        if self.what == "another buffer":
            self.count = self.count + 1
        if self.what == "input":
            x.mul_(2)
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("buffer in place", "its buffer count"),
        ("another buffer", "its buffer count"),
        ("input", "an input in place"),
    ],
)
def test_what_would_happen_twice_is_refused(what: str, told: str) -> None:
    module = Changes(what)
    recompute_blocks(module, whole=True)
    with pytest.raises(RuntimeFault, match=f"the forward of Changes changes {told}"):
        module(torch.randn(4, 6))
    with torch.no_grad():
        module(torch.randn(4, 6))


def test_spectral_norm_is_refused() -> None:
    module = nn.Sequential(nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.ReLU()))
    recompute_blocks(module)
    with pytest.raises(RuntimeFault, match="changes its buffer"):
        module(torch.randn(4, 6))
