"""How the gradients of a tail's parameters become those of the whole batch, among replicas.

Dense ones go in one message. Of a vocabulary's rows each replica has used others: what goes are
the rows that it has used, and everybody gets those of all. `all_reduce` of sparse tensors, which
gloo knows, adds them up in an order that differs between replicas; here it is theirs, so that the
copies of a tail stay equal bit for bit. How many rows there are must be known on the host: on CUDA
a sampled vocabulary waits for the device here, as its optimizer does anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dnic.runtime.replicas import Average, Replicas


def averaged(gradients: Sequence[Tensor], replicas: Replicas, weight: float) -> list[Tensor]:
    """Gradients of the mean loss over the batch, of those over this replica's share.

    Args:
        gradients: dense and sparse; the same ones in every replica.
        replicas: of the stage; all of them must ask.
        weight: of this replica's share.
    """
    average = replicas.weighed(weight)
    if average is None:
        return list(gradients)
    together = iter(_in_one_message([g for g in gradients if not g.is_sparse], average))
    return [
        _rows(gradient, replicas, weight) if gradient.is_sparse else next(together)
        for gradient in gradients
    ]


def _in_one_message(tensors: Sequence[Tensor], average: Average) -> list[Tensor]:
    if not tensors:
        return []
    flat = average(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _rows(gradient: Tensor, replicas: Replicas, weight: float) -> Tensor:
    """The average of sparse gradients `[classes, F]`, its rows not yet added up."""
    own = gradient.coalesce()
    index, rows = own.indices()[0], own.values() * (weight / replicas.number)
    counts = torch.cat(replicas.gather(torch.tensor([len(index)], device=index.device))).tolist()
    missing = max(counts) - len(index)
    indices = replicas.gather(F.pad(index, (0, missing)))
    values = replicas.gather(F.pad(rows, (0, 0, 0, missing)))
    return torch.sparse_coo_tensor(
        torch.cat([given[:n] for given, n in zip(indices, counts, strict=True)]).unsqueeze(0),
        torch.cat([given[:n] for given, n in zip(values, counts, strict=True)]),
        gradient.shape,
        check_invariants=False,
    )
