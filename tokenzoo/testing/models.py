"""Tiny random models of every family, made from their configs: the real Hugging Face classes, milliseconds a forward.

Weights are drawn wide enough that every visual token moves the logits by far more than the tests' tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from tokenzoo.errors import unknown

#: Deep enough for the published defaults (AIM to layer 22, PyramidDrop after layer 24) to act.
LAYERS = 26
HIDDEN, HEADS, KV_HEADS, VOCABULARY = 64, 4, 2, 96
PAD, IMAGE, VIDEO, VISION_START, VISION_END = 0, 90, 91, 92, 93
#: Text is drawn from these token ids.
TEXT = range(3, 90)
INITIALIZER_RANGE = 0.12


class Place(NamedTuple):
    """Where tiny models compute, and in which number format."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def full(self) -> bool:
        """Whether numbers have enough digits to tell dropped tokens from rounding."""
        return self.dtype in (torch.float32, torch.float64)

    @property
    def has_float64(self) -> bool:
        """Whether the device computes in float64 (Apple's GPUs do not)."""
        return torch.device(self.device).type != "mps"

    def __str__(self) -> str:
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}"


HERE = Place()


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


def _llava_next_video(layers: int) -> nn.Module:
    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(**_encoder(48, 12)),
            text_config=LlamaConfig(**_decoder(layers)),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
            image_seq_length=16,
        )
    )


def _internvl(layers: int) -> nn.Module:
    """Tiles of 6 x 6 patches, shuffled into 9 tokens; norms of q and k in the encoder."""
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
        attention_bias=True,
        use_qk_norm=True,
        layer_scale_init_value=1.0,
        initializer_range=INITIALIZER_RANGE,
    )
    text = Qwen2Config(**_decoder(layers, KV_HEADS))
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=9)
    )


_PATCHED_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
    "initializer_range": INITIALIZER_RANGE,
}

_IDEFICS_TOKENS: dict[str, Any] = {"image_token_id": IMAGE, "initializer_range": INITIALIZER_RANGE}


def _smolvlm(layers: int) -> nn.Module:
    text = LlamaConfig(**_decoder(layers, KV_HEADS))
    config = SmolVLMConfig(vision_config=_PATCHED_SIGLIP, text_config=text, scale_factor=2, **_IDEFICS_TOKENS)
    return SmolVLMForConditionalGeneration(config)


def _idefics3(layers: int) -> nn.Module:
    text = LlamaConfig(**_decoder(layers))
    config = Idefics3Config(vision_config=_PATCHED_SIGLIP, text_config=text, scale_factor=2, **_IDEFICS_TOKENS)
    return Idefics3ForConditionalGeneration(config)


def _idefics2(layers: int) -> nn.Module:
    text = MistralConfig(**_decoder(layers, KV_HEADS), sliding_window=None)
    resampler = {
        "hidden_size": HIDDEN,
        "resampler_n_latents": 12,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    }
    model = Idefics2ForConditionalGeneration(
        Idefics2Config(vision_config=_PATCHED_SIGLIP, text_config=text, perceiver_config=resampler, **_IDEFICS_TOKENS)
    )
    model.model.connector.perceiver_resampler.latents.data.normal_(0, INITIALIZER_RANGE)  # ones by default: all alike
    return model


def _video_llava(layers: int) -> nn.Module:
    vision = CLIPVisionConfig(**_encoder(32, 8))
    return VideoLlavaForConditionalGeneration(
        VideoLlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**_decoder(layers)),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_seq_length=16,
            video_seq_length=17 * 4,
        )
    )


def _gemma3(layers: int) -> nn.Module:
    """Every third layer sees everything, the others a window shorter than the prompts; 6 x 6 patches are pooled to 9 tokens."""
    text = {
        **_decoder(layers, KV_HEADS),
        "head_dim": HIDDEN // HEADS,
        "query_pre_attn_scalar": 24,
        "sliding_window": 20,
        "layer_types": ["full_attention" if index % 3 == 2 else "sliding_attention" for index in range(layers)],
    }
    vision = {**_encoder(48, 8), "model_type": "siglip_vision_model", "vision_use_head": False}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=9,
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
            initializer_range=INITIALIZER_RANGE,
        )
    )
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(0, INITIALIZER_RANGE)  # zeros by default
    return model


def _gemma4(layers: int, **text: Any) -> nn.Module:
    """Full layers have wider heads than those with a window; 2 x 2 patches are pooled to a token."""
    kinds = ["full_attention" if index % 3 == 1 or index == layers - 1 else "sliding_attention" for index in range(layers)]
    sizes = {
        **_decoder(layers, KV_HEADS),
        "head_dim": HIDDEN // HEADS,
        "global_head_dim": 2 * HIDDEN // HEADS,
        "sliding_window": 20,
        "layer_types": kinds,
        "vocab_size_per_layer_input": VOCABULARY,
        **text,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
        "initializer_range": INITIALIZER_RANGE,
    }
    tokens: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 94}
    tokens |= {"boi_token_id": VISION_START, "eoi_token_id": VISION_END, "audio_config": None}
    model = Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=sizes, vision_config=vision, tie_word_embeddings=False, **tokens)
    )
    model.model.vision_tower.patch_embedder.position_embedding_table.data.normal_(0, INITIALIZER_RANGE)  # ones by default
    return model


def _gemma4_small(layers: int) -> nn.Module:
    """As E2B and E4B: inputs of their own for the layers, the last quarter of which read the keys of earlier ones."""
    return _gemma4(layers, hidden_size_per_layer_input=8, num_kv_shared_layers=layers // 4, use_double_wide_mlp=True)


def _gemma4_moe(layers: int) -> nn.Module:
    """As 26B-A4B: experts beside an MLP, images open to themselves, keys that are the values in full layers."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": HIDDEN // 2}
    alike = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "use_bidirectional_attention": "vision"}
    return _gemma4(layers, hidden_size_per_layer_input=0, **experts, **alike)


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


def _qwen3(layers: int, depths: list[int]) -> dict[str, Any]:
    """What the configs of Qwen3-VL models have in common: DeepStack from encoder layers `depths`."""
    return {
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "num_heads": 4,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": depths,
            "initializer_range": INITIALIZER_RANGE,
        },
        **_QWEN_TOKENS,
    }


def _qwen3_text(layers: int, kv_heads: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return {**_decoder(layers, kv_heads), "head_dim": HIDDEN // HEADS, "rope_parameters": rope}


def _qwen3_vl(layers: int, kv_heads: int = KV_HEADS, depths: tuple[int, ...] = (0, 1, 2)) -> nn.Module:
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=_qwen3_text(layers, kv_heads), **_qwen3(layers, list(depths)))
    )


def _qwen3_vl_mha(layers: int) -> nn.Module:
    """As many key as query heads, and DeepStack at one depth."""
    return _qwen3_vl(layers, HEADS, (1,))


def _qwen3_vl_moe(layers: int) -> nn.Module:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "mlp_only_layers": [1]}
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(text_config={**_qwen3_text(layers, KV_HEADS), **experts}, **_qwen3(layers, [0, 2]))
    )


def _qwen3_5(layers: int) -> dict[str, Any]:
    """Every third layer attends, the second first; two value heads share a key head in the others."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    text = {
        **_decoder(layers, KV_HEADS),
        "head_dim": HIDDEN // HEADS,
        "layer_types": ["full_attention" if index % 3 == 1 else "linear_attention" for index in range(layers)],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "rope_parameters": rope,
    }
    vision = _qwen3(layers, [])["vision_config"]
    del vision["deepstack_visual_indexes"]
    return {"text_config": text, "vision_config": vision, **_QWEN_TOKENS}


def _remembering(model: Any) -> nn.Module:
    """States that last: with the drawn decay most forget each row at once, and norms of next to nothing blow up rounding."""
    for layer in model.model.language_model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.A_log.data.uniform_(-4, -1)
            layer.linear_attn.conv1d.weight.data.normal_(0, 0.5)
    return model


def _qwen3_5_dense(layers: int) -> nn.Module:
    return _remembering(Qwen3_5ForConditionalGeneration(Qwen3_5Config(**_qwen3_5(layers))))


def _qwen3_5_moe(layers: int) -> nn.Module:
    sizes = _qwen3_5(layers)
    del sizes["text_config"]["intermediate_size"]
    # every expert is asked: its recurrence is in float32 whatever the model is, and rounding would choose experts now and then
    sizes["text_config"] |= {"num_experts": 4, "num_experts_per_tok": 4}
    sizes["text_config"] |= {"moe_intermediate_size": HIDDEN, "shared_expert_intermediate_size": HIDDEN // 2}
    return _remembering(Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**sizes)))


_BUILDERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "llava": ("llava", _llava),
    "llava-next": ("llava_next", _llava_next),
    "llava-onevision": ("llava_onevision", _llava_onevision),
    "qwen2-vl": ("qwen2_vl", _qwen2_vl),
    "qwen2.5-vl": ("qwen2_5_vl", _qwen2_5_vl),
    "qwen3-vl": ("qwen3_vl", _qwen3_vl),
    "qwen3-vl-mha": ("qwen3_vl", _qwen3_vl_mha),
    "qwen3-vl-moe": ("qwen3_vl_moe", _qwen3_vl_moe),
    "qwen3.5": ("qwen3_5", _qwen3_5_dense),
    "qwen3.5-moe": ("qwen3_5_moe", _qwen3_5_moe),
    "internvl": ("internvl", _internvl),
    "llava-next-video": ("llava_next_video", _llava_next_video),
    "video-llava": ("video_llava", _video_llava),
    "gemma3": ("gemma3", _gemma3),
    "gemma4": ("gemma4", _gemma4_small),
    "gemma4-moe": ("gemma4", _gemma4_moe),
    "smolvlm": ("smolvlm", _smolvlm),
    "idefics3": ("idefics3", _idefics3),
    "idefics2": ("idefics2", _idefics2),
}
FAMILIES = tuple(_BUILDERS)
#: Those that differ most in what a method sees; a method is checked on them unless others are named.
USUAL = ("llava", "llava-next", "llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3")
#: The `config.model_type` of each.
MODEL_TYPES = {family: model_type for family, (model_type, _) in _BUILDERS.items()}


def tiny_model(
    family: str,
    attn_implementation: str = "sdpa",
    layers: int = LAYERS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Return a random model of a family in evaluation mode; the same weights for the same seed, whatever the device."""
    if family not in _BUILDERS:
        raise unknown("family", family, FAMILIES, "python -c 'import tokenzoo.testing as t; print(t.FAMILIES)'")
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[family][1](layers).eval()
        _spread_weights(model)
    model.requires_grad_(False)
    model.set_attn_implementation(attn_implementation)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.config.name_or_path = f"tiny-{family}"
    return model.to(dtype=dtype).to(device)


def _spread_weights(model: nn.Module) -> None:
    """Give biases and norms values of their own: at zeros and ones a forgotten bias would not show."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
