"""A tied embedding, a mapping in, a dataclass out, and a loss of the model's own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Prediction:
    logits: Tensor
    loss: Tensor | None = None
    hidden: Tensor | None = None


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        scale: float = 1.0,
    ) -> Prediction:
        if labels is not None and labels.max() >= 20:
            raise ValueError("a label that is no token")
        hidden = self.embed(input_ids) * scale
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        logits = self.head(hidden)
        if labels is None:
            return Prediction(logits)
        flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return Prediction(logits, loss=flat.sum() / (2 * flat.numel()), hidden=hidden)


def build_model() -> nn.Module:
    return Tied()


def example_inputs() -> dict[str, object]:
    tokens = torch.randint(0, 20, (4, 6))
    mask = torch.rand(4, 6) > 0.2
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens, "scale": 2.0}
