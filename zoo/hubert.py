"""HuBERT: characters from sound, by CTC; layer drop is off."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import HubertConfig, HubertForCTC

SAMPLES = 1600


def build_model() -> nn.Module:
    config = HubertConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 2),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.0,
        mask_time_prob=0.0,
        ctc_zero_infinity=True,
        ctc_loss_reduction="mean",
    )
    return HubertForCTC(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(count, SAMPLES, generator=generator)
    labels = torch.randint(1, 32, (count, 6), generator=generator)
    return {"input_values": sound, "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
