"""A linear-attention layer worked out row by row in float64: what Qwen3.5's gated DeltaNet must answer on the rows that are left.

Nothing but the layer's own weights, norms and MLP is used: no chunks, no cache, no mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def recurrent_layer(layer: Any, hidden: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """The layer's output [1, total, hidden]: `rows`, in their order, are its sequence; the others pass its MLP alone."""
    index = torch.tensor(rows, dtype=torch.long, device=hidden.device)
    mixed = hidden.clone()
    mixed[0, index] += gated_delta_net(layer.linear_attn, layer.input_layernorm(hidden[0, index]))
    made = layer.mlp(layer.post_attention_layernorm(mixed))
    return mixed + (made[0] if isinstance(made, tuple) else made)


def gated_delta_net(net: Any, rows: torch.Tensor) -> torch.Tensor:
    """Of rows [rows, hidden]: S_t = e^(g_t) S_(t-1) + k_t ⊗ β_t (v_t - (e^(g_t) S_(t-1))ᵀ k_t), o_t = S_tᵀ q_t / √d."""
    keys, values, kernel = net.num_k_heads, net.num_v_heads, net.conv_kernel_size
    channels = net.in_proj_qkv(rows).double()
    padded = functional.pad(channels, (0, 0, kernel - 1, 0))
    weight = net.conv1d.weight[:, 0].double()
    mixed = functional.silu(sum(weight[:, place] * padded[place : place + len(rows)] for place in range(kernel)))
    query, key, value = mixed.split([net.key_dim, net.key_dim, net.value_dim], dim=-1)
    query, key = (_unit(part.unflatten(-1, (keys, -1))).repeat_interleave(values // keys, dim=1) for part in (query, key))
    value = value.unflatten(-1, (values, -1))
    rate = net.in_proj_b(rows).double().sigmoid()
    decay = (-net.A_log.double().exp() * functional.softplus(net.in_proj_a(rows).double() + net.dt_bias.double())).exp()
    state = value.new_zeros(values, query.shape[-1], value.shape[-1])
    read = []
    for number in range(len(rows)):
        state = state * decay[number, :, None, None]
        known = torch.einsum("hkv,hk->hv", state, key[number])
        state = state + torch.einsum("hk,hv->hkv", key[number], (value[number] - known) * rate[number, :, None])
        read.append(torch.einsum("hkv,hk->hv", state, query[number]) * query.shape[-1] ** -0.5)
    gate = net.in_proj_z(rows).unflatten(-1, (values, -1))
    return net.out_proj(net.norm(torch.stack(read).to(rows), gate).flatten(-2))


def _unit(states: torch.Tensor) -> torch.Tensor:
    return states * (states.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
