"""Qwen3.5, dense and mixture of experts: Qwen2-VL's encoder, timestamps between frames, and linear attention in most layers.

A linear-attention layer keeps a state in place of keys and values. A row that is dropped is simply not in the next layer's
sequence, so rows may be dropped after any layer, but a linear layer has no attention that a method could read. A
full-attention layer gates its output: its query projection makes query and gate of each head, side by side.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenzoo.host.families.qwen2_vl import Qwen2VL
from tokenzoo.host.family import LINEAR, Module
from tokenzoo.method.workload import Architecture, LinearAttention


class Qwen35(Qwen2VL):
    name = "qwen3.5"
    model_types = ("qwen3_5", "qwen3_5_moe")

    def layer_type(self, decoder: Module, index: int) -> str:
        return decoder.config.layer_types[index]

    def decoder_projections(self, layer: Module) -> tuple[Module, Module] | None:
        return super().decoder_projections(layer) if hasattr(layer, "self_attn") else None

    def mlp_branch(self, layer: Module) -> tuple[Module, Module]:
        return layer.post_attention_layernorm, layer.mlp

    def query_heads(self, layer: Module, states: torch.Tensor) -> torch.Tensor:
        head = layer.self_attn.head_dim
        return states.unflatten(-1, (-1, 2 * head))[..., :head]

    def architecture(self, model: Module) -> Architecture:
        config = self.decoder(model).config
        linear = LinearAttention(
            layers=tuple(index for index, kind in enumerate(config.layer_types) if kind == LINEAR),
            key_heads=config.linear_num_key_heads,
            value_heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            kernel=config.linear_conv_kernel_dim,
        )
        return replace(super().architecture(model), linear=linear)
