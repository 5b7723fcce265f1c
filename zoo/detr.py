"""DETR: a fixed set of queries over a convolutional backbone; classes and boxes come out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.utils import ModelOutput

CLASSES, QUERIES, SIZE = 5, 6, 64


def build_model() -> nn.Module:
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=QUERIES,
        d_model=32,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_labels=CLASSES,
    )
    return DetrForObjectDetection(config)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> dict[str, Tensor]:
    return {"pixel_values": images(4)}


def loss(output: ModelOutput, target: Tensor) -> dict[str, Tensor]:
    """Query i looks for object i: no matching, to keep the example short."""
    return {
        "classes": F.cross_entropy(output.logits.flatten(0, 1), target.flatten()),
        "boxes": output.pred_boxes.sub(0.5).abs().mean(),
    }


def train_data() -> StackDataset:
    classes = torch.arange(64 * QUERIES).reshape(64, QUERIES) % CLASSES
    return StackDataset(StackDataset(pixel_values=images(64)), classes)
