"""A stage's weights as they were when its late batches went forward.

A stage that goes back through batch t-L at step t needs the weights of that forward pass: with
others the result is the gradient of nothing (PipeDream's weight stashing: Narayanan et al. 2019,
arXiv 1806.03377, section 3.3). Autograd holds them by reference and refuses weights that an
optimizer has changed in place since. Computing the forward pass anew would cost a third of a step;
`torch.autograd.graph.saved_tensors_hooks` would cost a Python call for every saved tensor.

Here a batch goes forward through aliases of the parameters: leaves of their own that share the
parameters' memory. Before anything changes the parameters in place these move to a copy, and the
old memory stays with the batches that still need it; it is freed with the last of their graphs.
That is one copy of the weights per update, and `L + 1` versions in memory at most. Frozen
parameters are not copied.

Not handled: buffers that a forward pass changes in place and its own backward pass reads again
(torch's modules have none); autograd reports those.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnic.runtime.foresight import Foresight


class WeightStash:
    """The weights of one stage, in the versions that its batches need.

    Args:
        module: the stage; its optimizer, too, holds the module's own parameters.
        foresight: what weights to go forward with; None: those of now.
    """

    def __init__(self, module: nn.Module, foresight: Foresight | None = None) -> None:
        self._module = module
        self._foresight = foresight
        self._parameters = dict(module.named_parameters())
        self._lent: set[str] = set()  # parameters whose present memory a graph may hold

    def forward(
        self, inputs: tuple[Tensor, ...], updates: int = 0
    ) -> tuple[object, Mapping[str, Tensor]]:
        """The module's output, and the weights that its graph leads back to.

        Args:
            inputs: of the module.
            updates: that are made before the one that these inputs are for.
        """
        foreseen = self._foresight.weights(updates) if self._foresight is not None else {}
        self._lent |= self._parameters.keys() - foreseen.keys()
        weights = {
            name: foreseen.get(name, parameter.data).requires_grad_(parameter.requires_grad)
            for name, parameter in self._parameters.items()
        }
        return functional_call(self._module, weights, inputs), weights

    def collect(self, weights: Mapping[str, Tensor]) -> None:
        """Moves the gradients that a backward pass left in a batch's weights to the parameters."""
        for name, weight in weights.items():
            if weight.grad is not None:
                self._parameters[name].grad = weight.grad

    def keep(self) -> None:
        """Gives the parameters memory of their own: they are about to be changed in place."""
        for name in self._lent:
            parameter = self._parameters[name]
            if parameter.requires_grad:
                parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
        self._lent.clear()
