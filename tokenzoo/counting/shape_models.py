"""Real Hugging Face models of an architecture's shape, without weights, and inputs of a workload's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokenzoo.cost.architecture import ModelArchitecture, VisionTower
from tokenzoo.cost.vision import view_grids
from tokenzoo.counting.counted import Counted, count
from tokenzoo.errors import UserError
from tokenzoo.host.family import image_argument
from tokenzoo.method.weightless import Weightless, empty_out, hollow
from tokenzoo.method.workload import Workload

TEXT, IMAGE, VIDEO, START, AUDIO = 1, 2, 3, 4, 5
PROJECTORS = ("model.multi_modal_projector", "model.connector", "model.embed_vision")
TOWERS = ("model.vision_tower", "model.vision_model", "model.image_tower", "model.video_tower", "model.visual")


@dataclass(frozen=True)
class ShapeCount:
    """What was counted on a forward of this shape, and its parts."""

    counted: Counted

    @property
    def flops(self) -> int:
        return self.counted.flops

    @property
    def parts(self) -> dict[str, int]:
        module = self.counted.module
        merger = module("model.visual.merger")
        return {
            "vision": sum(map(module, TOWERS)) - merger,
            "projector": sum(map(module, PROJECTORS)) + merger,
            "decoder": module("model.language_model") + module("model.text_model"),
            "lm_head": module("lm_head"),
            "method": self.counted.method,
        }


def count_shape(model: ModelArchitecture, workload: Workload, reducer: Any = None, batch: int = 1) -> ShapeCount:
    """Count a forward of `model`'s true shape with `reducer` at work, with the LM head on the last position.

    Raises UserError where the workload is none that a model of this architecture makes of its pictures.
    """
    real = empty_out(build(model))
    inputs = {**inputs_of(model, workload, batch), "logits_to_keep": 1}
    if "pixel_values" in inputs:
        inputs[image_argument(real)] = inputs.pop("pixel_values")
    with Weightless():
        return ShapeCount(count(real, inputs, reducer))


def build(model: ModelArchitecture) -> nn.Module:
    """The Hugging Face model of this shape on the meta device; raises UserError where the family is unknown."""
    import transformers

    hf: Any = transformers
    decoder, tower = model.decoder, model.vision
    text: dict[str, Any] = {
        "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "intermediate_size": decoder.intermediate,
        "vocab_size": decoder.vocab,
        "max_position_embeddings": 1 << 20,
    }
    if tower is None or model.projector is None:
        raise UserError(f"'{model.name}' has no vision tower to run. Choose a whole model, such as llava-1.5-7b.")
    tokens: dict[str, Any] = {"image_token_index": IMAGE}
    if model.model_type in _OTHERS:
        config, family = _OTHERS[model.model_type](hf, model, text)
    elif tower.kind == "gemma4":
        config, family = _gemma4(hf, model, text)
    elif tower.kind == "vit":
        sizes = _sizes(tower)
        if not tower.class_token:
            vision = hf.SiglipVisionConfig(**sizes, vision_use_head=tower.pooling_head)
            config = hf.LlavaOnevisionConfig(
                vision_config=vision, text_config=hf.Qwen2Config(**text), video_token_index=VIDEO, **tokens
            )
            family = hf.LlavaOnevisionForConditionalGeneration
        else:
            vision, language = hf.CLIPVisionConfig(**sizes), hf.LlamaConfig(**text)
            if model.image and len(model.image.encoder_views) > 1:
                side = 2 * tower.image_size
                config = hf.LlavaNextConfig(
                    vision_config=vision, text_config=language, image_grid_pinpoints=[[side, side]], **tokens
                )
                family = hf.LlavaNextForConditionalGeneration
            else:
                config = hf.LlavaConfig(vision_config=vision, text_config=language, **tokens)
                family = hf.LlavaForConditionalGeneration
    else:
        config, family = _qwen(hf, model, text)
    with torch.device("meta"):
        made = family(config)
    if decoder.experts:
        made.set_experts_implementation("batched_mm")  # the default kernel takes no float32 on the meta device
    return made


def _sizes(tower: VisionTower) -> dict[str, Any]:
    return {
        "hidden_size": tower.hidden,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.intermediate,
        "patch_size": tower.patch,
        "image_size": tower.image_size,
    }


def _tile_tokens(tower: VisionTower) -> int:
    return (tower.image_size // tower.patch // tower.merge) ** 2


def _internvl(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower = model.vision
    assert tower is not None
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**_sizes(tower)),
        text_config=hf.Qwen2Config(**text),
        image_token_id=IMAGE,
        downsample_ratio=1 / tower.merge,
        image_seq_length=_tile_tokens(tower),
    )
    return config, hf.InternVLForConditionalGeneration


def _idefics(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower = model.vision
    assert tower is not None
    name = "SmolVLM" if model.model_type == "smolvlm" else "Idefics3"
    config = getattr(hf, f"{name}Config")(
        vision_config=_sizes(tower), text_config=hf.LlamaConfig(**text), scale_factor=tower.merge, image_token_id=IMAGE
    )
    return config, getattr(hf, f"{name}ForConditionalGeneration")


def _idefics2(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower, resampler = model.vision, model.resampler
    assert tower is not None and resampler is not None
    perceiver = {
        "hidden_size": model.decoder.hidden,
        "resampler_n_latents": resampler.latents,
        "resampler_depth": resampler.layers,
        "resampler_n_heads": resampler.heads,
        "resampler_head_dim": resampler.head_dim,
        "num_key_value_heads": resampler.kv_heads,
    }
    language = hf.MistralConfig(**text, sliding_window=None)
    config = hf.Idefics2Config(
        vision_config=_sizes(tower), text_config=language, perceiver_config=perceiver, image_token_id=IMAGE
    )
    return config, hf.Idefics2ForConditionalGeneration


def _gemma3(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower, decoder = model.vision, model.decoder
    assert tower is not None
    full = set(decoder.full_attention_layers)
    types = ["full_attention" if index in full else "sliding_attention" for index in range(decoder.layers)]
    language = hf.Gemma3TextConfig(
        **text, head_dim=decoder.head_dim, sliding_window=decoder.window, layer_types=types, pad_token_id=0
    )
    config = hf.Gemma3Config(
        text_config=language,
        vision_config={**_sizes(tower), "vision_use_head": False},
        mm_tokens_per_image=_tile_tokens(tower),
        image_token_index=IMAGE,
    )
    return config, hf.Gemma3ForConditionalGeneration


def _gemma4(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower, decoder = model.vision, model.decoder
    assert tower is not None
    full = set(decoder.full_attention_layers)
    text |= {
        "head_dim": decoder.head_dim,
        "global_head_dim": decoder.full_head_dim,
        "num_global_key_value_heads": decoder.full_kv_heads or None,
        "attention_k_eq_v": decoder.key_is_value,
        "sliding_window": decoder.window,
        "layer_types": ["full_attention" if index in full else "sliding_attention" for index in range(decoder.layers)],
        "num_kv_shared_layers": decoder.shared_kv_layers,
        "use_double_wide_mlp": decoder.wide_shared_mlp,
        "hidden_size_per_layer_input": decoder.per_layer_width,
    }
    if decoder.experts:
        text |= {"enable_moe_block": True, "num_experts": decoder.experts, "top_k_experts": decoder.active_experts}
        text |= {"moe_intermediate_size": decoder.expert_intermediate}
    vision = {
        "hidden_size": tower.hidden,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "num_key_value_heads": tower.heads,
        "head_dim": tower.hidden // tower.heads,
        "intermediate_size": tower.intermediate,
        "patch_size": tower.patch,
        "pooling_kernel_size": tower.merge,
    }
    given: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO, "audio_config": None}
    return hf.Gemma4Config(text_config=text, vision_config=vision, **given), hf.Gemma4ForConditionalGeneration


def _llava_video(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower = model.vision
    assert tower is not None
    vision, language = hf.CLIPVisionConfig(**_sizes(tower)), hf.LlamaConfig(**text)
    given: dict[str, Any] = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    if model.model_type == "video_llava":
        config = hf.VideoLlavaConfig(vision_config=vision, text_config=language, **given)
        return config, hf.VideoLlavaForConditionalGeneration
    side = 2 * tower.image_size
    given |= {"image_grid_pinpoints": [[side, side]]}
    if model.video is not None and model.video.merged:
        given |= {"spatial_pool_stride": math.isqrt(model.video.merged)}
    config = hf.LlavaNextVideoConfig(vision_config=vision, text_config=language, **given)
    return config, hf.LlavaNextVideoForConditionalGeneration


#: Families whose class their shape does not tell.
_OTHERS = {
    "internvl": _internvl,
    "smolvlm": _idefics,
    "idefics3": _idefics,
    "idefics2": _idefics2,
    "gemma3": _gemma3,
    "llava_next_video": _llava_video,
    "video_llava": _llava_video,
}


def _qwen(hf: Any, model: ModelArchitecture, text: dict[str, Any]) -> tuple[Any, Any]:
    tower, head = model.vision, model.decoder.head_dim
    assert tower is not None
    section = [head // 8, head * 3 // 16, head // 2 - head // 8 - head * 3 // 16]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    sizes: dict[str, Any] = {
        "depth": tower.layers,
        "num_heads": tower.heads,
        "patch_size": tower.patch,
        "temporal_patch_size": tower.temporal_patch,
        "spatial_merge_size": tower.merge,
    }
    if tower.kind == "qwen2.5-vl":
        sizes |= {"hidden_size": tower.hidden, "intermediate_size": tower.intermediate, "window_size": tower.window}
        sizes |= {"out_hidden_size": model.decoder.hidden, "fullatt_block_indexes": list(tower.full_attention_layers)}
        config = hf.Qwen2_5_VLConfig(vision_config=sizes, text_config=text, **tokens)
        return config, hf.Qwen2_5_VLForConditionalGeneration
    if tower.kind == "qwen3-vl":
        sizes |= {"hidden_size": tower.hidden, "intermediate_size": tower.intermediate, "out_hidden_size": model.decoder.hidden}
        text |= {"head_dim": head}
        if model.decoder.linear is not None:
            return _qwen35(hf, model, text, {"vision_config": sizes, **tokens})
        sizes |= {"deepstack_visual_indexes": list(range(tower.deepstack))}
        if not model.decoder.experts:
            return hf.Qwen3VLConfig(vision_config=sizes, text_config=text, **tokens), hf.Qwen3VLForConditionalGeneration
        text |= {"num_experts": model.decoder.experts, "num_experts_per_tok": model.decoder.active_experts}
        text |= {"moe_intermediate_size": model.decoder.expert_intermediate, "mlp_only_layers": list(model.decoder.dense_layers)}
        return hf.Qwen3VLMoeConfig(vision_config=sizes, text_config=text, **tokens), hf.Qwen3VLMoeForConditionalGeneration
    sizes |= {"embed_dim": tower.hidden, "hidden_size": model.decoder.hidden, "mlp_ratio": tower.intermediate // tower.hidden}
    return hf.Qwen2VLConfig(vision_config=sizes, text_config=text, **tokens), hf.Qwen2VLForConditionalGeneration


def _qwen35(hf: Any, model: ModelArchitecture, text: dict[str, Any], given: dict[str, Any]) -> tuple[Any, Any]:
    decoder = model.decoder
    linear = decoder.linear
    assert linear is not None
    text |= {
        "layer_types": ["linear_attention" if index in linear.layers else "full_attention" for index in range(decoder.layers)],
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        "linear_key_head_dim": linear.key_dim,
        "linear_value_head_dim": linear.value_dim,
        "linear_conv_kernel_dim": linear.kernel,
    }
    if not decoder.experts:
        return hf.Qwen3_5Config(text_config=text, **given), hf.Qwen3_5ForConditionalGeneration
    del text["intermediate_size"]
    text |= {"num_experts": decoder.experts, "num_experts_per_tok": decoder.active_experts}
    text |= {"moe_intermediate_size": decoder.expert_intermediate, "shared_expert_intermediate_size": decoder.beside_experts}
    return hf.Qwen3_5MoeConfig(text_config=text, **given), hf.Qwen3_5MoeForConditionalGeneration


def inputs_of(model: ModelArchitecture, workload: Workload, batch: int = 1) -> dict[str, Any]:
    """Inputs with this workload's pictures and its text ahead of and behind them, for `batch` equal samples."""
    tower = model.vision
    assert tower is not None
    kinds = {source.kind for source in workload.sources}
    if len(kinds) != 1:
        raise UserError("A forward of this shape is counted with pictures of one kind: images or a video.")
    video = kinds == {"video"}
    row = [TEXT] * workload.text_before
    for source in workload.sources:
        row += [VIDEO if video else IMAGE] * source.tokens
    ids = torch.tensor([[*row, *[TEXT] * (workload.text_tokens - workload.text_before)]] * batch)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    views = [len(source.before_projector) for source in workload.sources]
    if tower.kind == "gemma4":
        return inputs | _patches(tower, view_grids(workload) * batch, torch.tensor(views * batch) if video else None)
    if tower.kind != "vit":
        grids, merge = view_grids(workload), tower.merge
        starts = [sum(views[:index]) for index in range(len(views))]
        grid = [(n, grids[s][0] * merge, grids[s][1] * merge) for n, s in zip(views, starts, strict=True)] * batch
        width = tower.channels * tower.temporal_patch * tower.patch**2
        pixels = hollow((sum(t * h * w for t, h, w in grid), width))
        names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
        positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)  # else the models look for text between the frames
        return {**inputs, names[0]: pixels, names[1]: torch.tensor(grid), "position_ids": positions}
    side, channels, pictures = tower.image_size, tower.channels, batch * len(views)
    if model.model_type in ("smolvlm", "idefics3", "idefics2"):  # pictures of zeros would be taken for padding
        pixels = torch.ones(()).expand(batch, len(views), channels, side, side)
        return {**inputs, "pixel_values": pixels, "pixel_attention_mask": torch.ones(batch, len(views), side, side).bool()}
    if video:
        return {**inputs, "pixel_values_videos": hollow((pictures, views[0], channels, side, side))}
    if model.image and len(model.image.encoder_views) > 1:
        tiles = round((views[0] - 1) ** 0.5) if views[0] > 1 else 1
        sizes = torch.tensor([[tiles * side, tiles * side]] * pictures)
        return {**inputs, "pixel_values": hollow((pictures, views[0], channels, side, side)), "image_sizes": sizes}
    return {**inputs, "pixel_values": hollow((pictures, channels, side, side))}


def _patches(tower: VisionTower, grids: Sequence[tuple[int, int]], frames: torch.Tensor | None) -> dict[str, Any]:
    """Gemma 4's pictures of these grids, or its videos of so many `frames` each: patches of any picture, and where they lie."""
    positions = torch.full((len(grids), max(height * width for height, width in grids) * tower.merge**2, 2), -1)
    for place, (height, width) in zip(positions, grids, strict=True):
        raster = torch.cartesian_prod(torch.arange(height * tower.merge), torch.arange(width * tower.merge)).flip(-1)
        place[: len(raster)] = raster
    pixels = hollow((*positions.shape[:2], tower.channels * tower.patch**2))
    if frames is None:
        return {"pixel_values": pixels, "image_position_ids": positions}
    return {"pixel_values_videos": pixels, "video_position_ids": positions, "num_frames_per_video": frames}
