"""T5: encoder and decoder with one embedding; relative positions made once for all layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import ModelOutput

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=6,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def pairs(count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Padded sentences with the targets so far, and the targets."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    target = torch.randint(1, VOCABULARY, (count, 12), generator=generator)
    mask = torch.arange(LENGTH) < 8 + torch.arange(count)[:, None] % 9
    before = F.pad(target[:, :-1], (1, 0))
    inputs = {"input_ids": source, "attention_mask": mask.long(), "decoder_input_ids": before}
    return inputs, target


def example_inputs() -> dict[str, Tensor]:
    return pairs(4)[0]


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten())


def train_data() -> StackDataset:
    inputs, target = pairs(64)
    return StackDataset(StackDataset(**inputs), target)


def samples_with_labels(count: int) -> dict[str, Tensor]:
    inputs, target = pairs(count)
    del inputs["decoder_input_ids"]
    return {**inputs, "labels": target}


def example_inputs_with_labels() -> dict[str, Tensor]:
    return samples_with_labels(4)


def train_data_with_labels() -> StackDataset:
    return StackDataset(**samples_with_labels(64))
