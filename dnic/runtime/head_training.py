"""Training a head on true gradients that arrive late, and predicting with it meanwhile.

    predict:  ghat = head(h, target) * scale / B, for all of a batch or a microbatch of it
    learn:    phi <- phi - lr * Adam(d/dphi || head(h, target) - g * B / scale ||^2)

Gradients of a mean loss shrink with the batch and with the loss; what a head learns is the gradient
of one sample's loss divided by its running root mean square, so that neither matters. The head's
forward is computed again when it learns: a stored graph would not survive the optimizer's step in
between. A head may learn from a part of each batch, another one every time: learning is two thirds
of what a head costs, and positions of a sequence or a map tell it much the same. Nothing here waits
for the device.

Replicas of a stage (`dnic.runtime.replicas`) each have a copy of its heads and feed it their share
of a batch. What is a mean over the batch is averaged over them before it is used: gradients, the
scale, the statistics of the inputs. So the copies stay equal bit for bit, and learn what one head
would learn from the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.head_axis import BatchAxis
from dnic.runtime.heads import Head
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.replicas import Average, Replicas

# The scale follows the gradients' own decay within ten batches or so, the statistics of activations
# drift more slowly.
SCALE_MOMENTUM = 0.1
INPUT_MOMENTUM = 0.02
_TINY = 1e-24


@dataclass(frozen=True)
class HeadStatistics:
    """Predicted against true gradient of one batch, before the step that learns from it.

    Tensors without axes, so that nothing waits for the device.

    Attributes:
        cosine: of the angle between the two, over the whole batch; 0 when one of them is zero.
        norm_ratio: norm of the predicted gradient over that of the true one.
        loss: mean squared error in normalised units; about 1 for a head that predicts zero.
        zero: what a head that predicts zero has; 1 on average, if gradients are much of one size.
    """

    cosine: Tensor
    norm_ratio: Tensor
    loss: Tensor
    zero: Tensor


class HeadTrainer:
    """A head, its own Adam, and the scale of its gradients. Deterministic.

    Args:
        head: on the device where it is to run.
        lr: learning rate.
        axis: where in the crossing tensor the samples lie.
        replicas: of the stage; None for no others.
        one_in: it learns from the n-th part of each batch: 1 is all of it.
    """

    def __init__(
        self,
        head: Head,
        lr: float,
        axis: BatchAxis | None = None,
        *,
        replicas: Replicas | None = None,
        one_in: int = 1,
    ) -> None:
        self.head = head
        self._replicas = replicas or Replicas()
        self._one_in = one_in
        self._axis = axis or BatchAxis()
        parameters = list(head.parameters())
        self._optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
        self._mean_square = torch.zeros((), dtype=head.dtype, device=parameters[0].device)
        self._steps = 0

    @torch.no_grad()
    def predict(
        self,
        h: Tensor,
        target: Tensor | None,
        microbatches: int = 1,
        weight: float = 1.0,
        beside: Sequence[Tensor] = (),
    ) -> Tensor:
        """The gradient of the batch's mean loss with respect to `h`, of its shape and dtype.

        Args:
            h: `[B, *sample_shape]`, or with the batch where `axis` says.
            target: the same batch's targets.
            microbatches: into which the batch is cut; `h` and the targets are of one of them.
            weight: of this replica's share of the batch; the loss is multiplied by it.
            beside: the further tensors that the head sees, their samples first.

        Raises:
            RuntimeFault: when `h` or the targets are not what the head was built for.
        """
        samples = self._axis.to_front(h)
        predicted: Tensor = self.head(samples, target, beside)
        rows = samples.shape[0] * microbatches
        scale = self._mean_square.sqrt() / rows
        if weight != 1:
            scale = scale * weight
        predicted.mul_(scale.to(predicted.dtype))
        return self._axis.back(predicted, h)

    def learn(
        self,
        h: Tensor,
        target: Tensor | None,
        gradient: Tensor,
        weight: float = 1.0,
        beside: Sequence[Tensor] = (),
    ) -> HeadStatistics:
        """One step on (a part of) a batch whose true gradient has come; all replicas must learn.

        Args:
            h: `[B, *sample_shape]`, or with the batch where `axis` says, as it was when sent; its
                graph is not used.
            target: the same batch's targets.
            gradient: true gradient of the batch's mean loss with respect to `h`, of its shape.
            weight: of this replica's share of the batch, by which the gradient is multiplied.
            beside: the further tensors that the head sees, their samples first.

        Raises:
            RuntimeFault: when `h` or the targets are not what the head was built for.
        """
        h = self._axis.to_front(h.detach())
        true = self._axis.to_front(gradient.detach())
        # Times which a row's gradient is that of its own loss.
        batch = h.shape[0] / (weight or 1)
        h, target, true, *beside = self._part(h, target, true, *beside)
        true = true.to(self.head.dtype)
        self._steps += 1
        # Every walk through the gradient counts: the head learns on the core that computes.
        square = dot(true, true)
        average = self._replicas.weighed(weight)
        mean_square = square * (batch * batch / true.numel())
        if average is not None:
            mean_square = average(mean_square)
        self._mean_square.lerp_(mean_square, max(1 / self._steps, SCALE_MOMENTUM))
        unit = batch * torch.rsqrt(self._mean_square + _TINY)
        self.head.observe(h, target, max(1 / self._steps, INPUT_MOMENTUM), average, beside)

        predicted = self.head(h.to(self.head.dtype), target, beside)
        known = predicted.detach()
        error = torch.addcmul(known, true, unit, value=-1)
        products = torch.stack((dot(known, known), dot(known, true), dot(error, error)))
        statistics = _compare(products, square, unit, error.numel())
        clear_gradients(self._optimizer)
        predicted.backward(error)
        gradients = [p.grad for p in self.head.parameters() if p.grad is not None]
        for of_loss in gradients:
            of_loss.mul_(2 / error.numel())
        if average is not None:
            _average_all(gradients, average)
        self._optimizer.step()
        return statistics

    def _part(
        self, h: Tensor, target: Tensor | None, true: Tensor, *beside: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, *tuple[Tensor, ...]]:
        """The samples of a batch that are learnt from at this step: blocks, in turns.

        Of a batch that cannot be divided (few samples, targets that are not one for each) all.
        """
        samples = h.shape[0] if target is None or not target.ndim else target.shape[0]
        divisible = all(tensor.shape[0] == samples for tensor in beside)
        divisible = divisible and samples >= self._one_in and not h.shape[0] % samples
        if self._one_in == 1 or not divisible:
            return h, target, true, *beside
        block, rows = self._steps % self._one_in, h.shape[0] // samples
        begin, end = (samples * edge // self._one_in for edge in (block, block + 1))
        some, seen = slice(begin * rows, end * rows), (tensor[begin:end] for tensor in beside)
        return h[some], None if target is None else target[begin:end], true[some], *seen

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: head, optimizer, scale, number of steps."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "mean_square": self._mean_square,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on bit for bit where `state_dict` was called."""
        self.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._mean_square.copy_(state["mean_square"])
        self._steps = int(state["steps"])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of all products of two tensors of one shape, without axes."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _average_all(tensors: list[Tensor], average: Average) -> None:
    """Averages tensors in place, in one message."""
    together = average(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    for tensor, part in zip(
        tensors, together.split_with_sizes([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(part.view_as(tensor))


def _compare(products: Tensor, square: Tensor, unit: Tensor, elements: int) -> HeadStatistics:
    """Statistics from what the prediction, the true gradient and their difference multiply to.

    Args:
        products: predicted with itself, predicted with true, error with itself.
        square: true with itself; the true gradient in units of the prediction is `unit` times it.
        unit: see there.
        elements: of the gradient.
    """
    tiny = torch.finfo(products.dtype).tiny
    norms = products[0].sqrt(), square.sqrt()
    cosine = products[1] / (norms[0] * norms[1]).clamp(min=tiny)
    ratio = norms[0] / (norms[1] * unit).clamp(min=tiny)
    zero = square * unit * unit / elements
    return HeadStatistics(cosine, ratio, products[2] / elements, zero)
