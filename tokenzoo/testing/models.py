"""Tiny random models of every family, made from their configs: the real Hugging Face classes, milliseconds a forward.

Weights are drawn wide enough that every visual token moves the logits by far more than the tests' tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from tokenzoo.errors import unknown

#: Deep enough for the published defaults (AIM to layer 22, PyramidDrop after layer 24) to act.
LAYERS = 26
HIDDEN, HEADS, KV_HEADS, VOCABULARY = 64, 4, 2, 96
PAD, IMAGE, VIDEO, VISION_START, VISION_END = 0, 90, 91, 92, 93
#: Text is drawn from these token ids.
TEXT = range(3, 90)
INITIALIZER_RANGE = 0.12


def _decoder(layers: int, kv_heads: int = HEADS) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "initializer_range": INITIALIZER_RANGE,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


def _encoder(image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "projection_dim": 32,
        "initializer_range": INITIALIZER_RANGE,
        "initializer_factor": 1.0,
    }


def _llava(layers: int) -> nn.Module:
    vision = CLIPVisionConfig(**_encoder(48, 8))
    text = LlamaConfig(**_decoder(layers))
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=36)
    )


def _llava_next(layers: int) -> nn.Module:
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**_encoder(48, 12)),
            text_config=LlamaConfig(**_decoder(layers)),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
            image_seq_length=16,
        )
    )


def _llava_onevision(layers: int) -> nn.Module:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**_encoder(48, 8), vision_use_head=False),
            text_config=Qwen2Config(**_decoder(layers, KV_HEADS)),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
        )
    )


def _mrope(layers: int) -> dict[str, Any]:
    return {
        **_decoder(layers, KV_HEADS),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }


_QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _qwen2_vl(layers: int) -> nn.Module:
    vision = {
        "depth": 3,
        "embed_dim": 32,
        "hidden_size": HIDDEN,
        "num_heads": 4,
        "patch_size": 4,
        "mlp_ratio": 2,
        "initializer_range": INITIALIZER_RANGE,
    }
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=_mrope(layers), **_QWEN_TOKENS))


def _qwen2_5_vl(layers: int) -> nn.Module:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": HIDDEN,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "initializer_range": INITIALIZER_RANGE,
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=_mrope(layers), **_QWEN_TOKENS))


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "llava": _llava,
    "llava-next": _llava_next,
    "llava-onevision": _llava_onevision,
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
}
FAMILIES = tuple(_BUILDERS)


def tiny_model(family: str, attn_implementation: str = "sdpa", layers: int = LAYERS, seed: int = 0) -> Any:
    """Return a random float32 model of a family in evaluation mode; the same weights for the same seed."""
    if family not in _BUILDERS:
        raise unknown("family", family, FAMILIES, "python -c 'import tokenzoo.testing as t; print(t.FAMILIES)'")
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[family](layers).eval()
        _spread_weights(model)
    model.requires_grad_(False)
    model.set_attn_implementation(attn_implementation)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.config.name_or_path = f"tiny-{family}"
    return model


def _spread_weights(model: nn.Module) -> None:
    """Give biases and norms values of their own: at zeros and ones a forgotten bias would not show."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
