"""Gradient clipping by norm, where the gradients lie in several processes.

`torch.nn.utils.clip_grad_norm_` knows one process's gradients. What the limit applies to:

- backprop, ddp: the one process has all gradients (in ddp, the same ones): torch's function.
- exact, oracle, torch's pipelines: the norm is that of all stages together. Each process tells its
  own between backward and update; they are added up in the order of the processes, so that all get
  the same bits.
- decoupled, stale: stages must not wait for one another, so each clips its own gradients, at
  `clip_norm * sqrt(share)`, `share` being its part of all parameters that train. If gradients are
  of one size everywhere, that is the same as clipping the whole. Where every interface of a
  decoupled run is exact, it is an exact run.
- alone: as decoupled, whatever the interfaces are.

Replicas of a stage clip the average of their gradients, which counts once.

Heads are not clipped: their gradients are of another problem, and normalised. A parameter that
several stages use counts once, with the stages' summed gradient, at its owner. Norms stay on the
device, and so does the decision whether anything is scaled; on CUDA `waited_s` misses the wait for
the other stages, which is the device's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dnic.runtime.devices import staged_by_host
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.options import WHOLE
from dnic.runtime.plan import Mode, Plan
from dnic.runtime.sharding import is_part, local

if TYPE_CHECKING:
    from dnic.runtime.replicas import Replicas
    from dnic.runtime.worker import Worker

_MAIN_MEMORY = torch.device("cpu")


class Clipping:
    """Clips the gradients of one process.

    Args:
        parameters: of its part of the model.
        limit: largest norm; None does nothing.
        processes: over which the norm is taken.
        carrier: where norms must lie to be sent; the same in all processes, also in one whose part
            of the model has no parameters.
        column: these; None: all processes.
        parts: those that hold parts of these parameters; None where they are whole.

    Attributes:
        limit: as given.
        waited_s: seconds spent waiting for the other processes' norms.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        limit: float | None,
        processes: int = 1,
        carrier: torch.device = _MAIN_MEMORY,
        *,
        column: dist.ProcessGroup | None = None,
        parts: Replicas | None = None,
    ) -> None:
        self.limit = limit
        self.waited_s = 0.0
        self._parameters = list(parameters)
        self._processes = processes
        self._carrier = carrier
        self._column = column
        self._parts = parts

    def clip(self) -> None:
        """Clips; called by all processes between backward and update.

        Raises:
            LinkFault: another process is gone.
        """
        if self.limit is None:
            return
        norm = gradient_norm(self._parameters)
        if self._parts is not None:
            norm = joined_norm(self._gathered(norm, self._parts.number, self._parts.group))
        if self._processes > 1:
            norm = joined_norm(self._gathered(norm, self._processes, self._column))
        scale_gradients(self._parameters, self.limit, norm)

    def _gathered(
        self, norm: Tensor, processes: int, group: dist.ProcessGroup | None
    ) -> list[Tensor]:
        started = time.perf_counter()
        own = norm.to(self._carrier)
        norms = [torch.empty_like(own) for _ in range(processes)]
        with lost_peers_named():
            dist.all_gather(norms, own, group=group)
        self.waited_s += time.perf_counter() - started
        return norms


def connect_clipping(worker: Worker, module: nn.Module) -> Clipping:
    """The clipping that a worker's plan and mode ask for."""
    plan, mode = worker.bundle.plan, worker.options.mode
    limit = plan.train.clip_norm
    parameters = list(module.parameters())
    if limit is None or mode in WHOLE:
        return Clipping(parameters, limit)
    replicas = worker.replicas
    parts = replicas if any(is_part(parameter) for parameter in parameters) else None
    if is_joint(plan, mode):
        carrier = _MAIN_MEMORY if staged_by_host() else worker.device  # gloo has no CUDA tensors
        stages = worker.place.stages
        return Clipping(parameters, limit, stages, carrier, column=replicas.column, parts=parts)
    return Clipping(parameters, stage_limit(limit, worker.parameter_share), parts=parts)


def is_joint(plan: Plan, mode: Mode) -> bool:
    """Whether the limit applies to the norm over all stages."""
    if mode == "alone":  # its stages make any number of steps, and meet at none
        return False
    return mode not in ("decoupled", "stale") or all(
        interface.gradient == "exact" for interface in plan.interfaces if interface.differentiable
    )


def planned_limits(
    plan: Plan, mode: Mode, stages: Sequence[nn.Module]
) -> tuple[float | None, list[float | None]]:
    """The limit of the norm over all stages, and of each stage's own norm; None: no limit.

    Args:
        plan: of the bundle.
        mode: that stages run in.
        stages: of one model.
    """
    limit = plan.train.clip_norm
    if limit is None or is_joint(plan, mode):
        return limit, [None] * len(stages)
    shares = [parameter_share(stages, index) for index in range(len(stages))]
    return None, [stage_limit(limit, share) for share in shares]


def stage_limit(limit: float, share: float) -> float:
    """The limit of one stage of a decoupled run."""
    return limit * math.sqrt(share)


def parameter_share(stages: Sequence[nn.Module], index: int) -> float:
    """A stage's part of all parameters that train, 0 to 1; a shared one is its first holder's."""
    owners: dict[nn.Parameter, int] = {}
    for number, stage in enumerate(stages):
        for parameter in stage.parameters():
            if parameter.requires_grad:
                owners.setdefault(parameter, number)
    whole = sum(parameter.numel() for parameter in owners)
    own = sum(parameter.numel() for parameter, owner in owners.items() if owner == index)
    return own / whole if whole else 0.0


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients, as torch computes it: float32, no axes."""
    gradients = [_values(parameter) for parameter in parameters if parameter.grad is not None]
    if not gradients:
        device = parameters[0].device if parameters else torch.device("cpu")
        return torch.zeros((), device=device)
    return get_total_norm(gradients).float()


def joined_norm(norms: Sequence[Tensor]) -> Tensor:
    """The norm over all stages from each one's own."""
    return torch.stack(list(norms)).double().square().sum().sqrt().float()


def scale_gradients(parameters: Sequence[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scales the gradients so that a norm becomes at most the limit, as torch does."""
    dense = []
    for parameter in parameters:
        if parameter.grad is not None and (parameter.grad.is_sparse or is_part(parameter.grad)):
            _values(parameter).mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        else:
            dense.append(parameter)
    clip_grads_with_norm_(dense, limit, norm)


def _values(parameter: nn.Parameter) -> Tensor:
    """A gradient's numbers; of a sparse one those that are there, each place once.

    Where the parameter is a part, those of the part.
    """
    gradient = parameter.grad
    assert gradient is not None  # only asked of parameters that have one
    if not gradient.is_sparse:
        return local(gradient)
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()
