"""BLIP: captions for images; the text decoder looks at the image in every layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import BlipConfig, BlipForConditionalGeneration

VOCABULARY, LENGTH, SIZE = 97, 12, 32


def build_model() -> nn.Module:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6}
    tower["num_attention_heads"] = 4
    text = {
        "vocab_size": VOCABULARY,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "pad_token_id": 0,
    }
    config = BlipConfig(
        text_config={**tower, **text},
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    return BlipForConditionalGeneration(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images, "input_ids": captions, "labels": captions}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
