"""A Llama of two layers: rotary positions, grouped queries, a mask for padding, labels."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


def build_model() -> nn.Module:
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config)


def example_inputs() -> dict[str, Tensor]:
    tokens = torch.randint(0, 48, (3, 8))
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}
