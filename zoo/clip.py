"""CLIP: a tower for images, one for texts, and how well these fit each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import CLIPConfig, CLIPModel
from transformers.utils import ModelOutput

VOCABULARY, LENGTH, SIZE = 97, 16, 32
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}


def build_model() -> nn.Module:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "eos_token_id": 96}
    vision = {"image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(
        text_config={**TOWER, **text}, vision_config={**TOWER, **vision}, projection_dim=16
    )
    return CLIPModel(config)


def samples(count: int) -> dict[str, Tensor]:
    """Padded texts that end with the last word of the vocabulary, and images."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY - 1, (count, LENGTH), generator=generator)
    lengths = 8 + torch.arange(count) % 9
    tokens[torch.arange(count), lengths - 1] = VOCABULARY - 1
    mask = torch.arange(LENGTH) < lengths[:, None]
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"input_ids": tokens * mask, "attention_mask": mask.long(), "pixel_values": images}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    """Text i belongs to image i; the data's targets only number the samples."""
    logits = output.logits_per_text
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_data() -> StackDataset:
    return StackDataset(StackDataset(**samples(64)), torch.arange(64))


def example_inputs_with_labels() -> dict[str, Tensor | bool]:
    """CLIP needs no labels: the model computes its loss when asked to."""
    return {**samples(4), "return_loss": True}


def train_data_with_labels() -> StackDataset:
    return StackDataset(**samples(64))
