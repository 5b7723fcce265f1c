"""What trips captures: indexing, masks, frozen gradients, a module called twice, plain tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """Branches on the value of a tensor: only a module kept whole does that right."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum() > 1e6:
            return x
        return torch.sigmoid(self.linear(x)) * x


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.table = torch.linspace(0.0, 1.0, 16)
        self.first = nn.Linear(16, 16)
        self.gate = Gate()
        self.second = nn.Linear(16, 16)
        self.scales = nn.ParameterList([torch.ones(16), torch.ones(16)])
        self.out = nn.Linear(16, 5)
        for parameter in self.first.parameters():
            parameter.requires_grad_(False)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        x = self.embed(left) + self.embed(right)
        with torch.no_grad():
            weights = torch.softmax(x.detach().sum(-1), dim=-1)
        x = (x * weights.unsqueeze(-1)).sum(1)
        x = self.first(x) + self.table.to(x.dtype)
        mask = torch.arange(x.shape[1], device=x.device) % 3 == 0
        x = x.masked_fill(mask, 0.0)
        y = torch.zeros(x.shape[0], 16, dtype=x.dtype, device=x.device)
        y[:, 1:] = x[:, :-1]
        y = self.gate(y) * self.scales[0]
        y = self.second(y) * self.scales[1]
        y = F.layer_norm(y.reshape(x.size(0) * 4, 4), (4,)).view_as(y)
        return {"logits": self.out(-y + 1), "state": y}


def build_model() -> nn.Module:
    return Odd()


def example_inputs() -> tuple[Tensor, ...]:
    return torch.randint(0, 20, (5, 7)), torch.randint(0, 20, (5, 7))


def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return F.cross_entropy(output["logits"], target)
