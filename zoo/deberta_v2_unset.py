"""DeBERTa-v2 without `problem_type`: its loss branches on the values of the labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

VOCABULARY, LENGTH, CLASSES = 97, 16, 5


def build_model() -> nn.Module:
    config = DebertaV2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=CLASSES,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    )
    return DebertaV2ForSequenceClassification(config)


def sentences(count: int) -> dict[str, Tensor]:
    """Sentences of 8 to 16 tokens, padded at the end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < 8 + torch.arange(count)[:, None] % 9
    return {"input_ids": tokens, "attention_mask": mask.long()}


def labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def example_inputs() -> dict[str, Tensor]:
    return {**sentences(4), "labels": labels(4)}


def train_data() -> StackDataset:
    return StackDataset(**sentences(64), labels=labels(64))
