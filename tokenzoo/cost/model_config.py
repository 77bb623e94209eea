"""Read a Hugging Face config (object, dictionary or config.json) as a `ModelArchitecture`, without importing torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenzoo.cost.architecture import ModelArchitecture, from_entry
from tokenzoo.cost.records import MOST_VIEWS
from tokenzoo.errors import UserError

#: The largest config.json that is read, in bytes.
LARGEST = 10_000_000

#: model_type of what is read, and whether its tokens pass a two-layer projector or Qwen's merger.
VISION_MODELS = {
    "llava": "vit",
    "llava_next": "vit",
    "llava_onevision": "vit",
    "qwen2_vl": "qwen2-vl",
    "llava_next_video": "vit",
    "video_llava": "vit",
    "internvl": "vit",
    "gemma3": "vit",
    "gemma4": "gemma4",
    "idefics2": "vit",
    "idefics3": "vit",
    "smolvlm": "vit",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "qwen3_5": "qwen3-vl",
    "qwen3_5_moe": "qwen3-vl",
}
#: model_type of the vision towers whose shape is known, and whether they prepend a class token.
CLASS_TOKEN = {
    "clip_vision_model": True,
    "internvl_vision": True,
    "siglip_vision_model": False,
    "idefics2_vision": False,
    "idefics3_vision": False,
    "smolvlm_vision": False,
}


def architecture_of(config: Any, name: str = "") -> ModelArchitecture:
    """Return the architecture that a Hugging Face config, a model with one, or a config.json describes.

    Raises UserError where a size is missing: a bare config.json leaves out what its class has as default;
    `AutoConfig.from_pretrained` fills it in.
    """
    values = _values(config)
    model_type = str(values.get("model_type") or "")
    name = str(name or values.get("_name_or_path") or model_type or "model")
    text = _section(values, "text_config", name) or values
    decoder = _decoder(text, name)
    entry: dict[str, Any] = {
        "decoder": decoder,
        "skip_mlp_add": "qwen2" in str(text.get("model_type", model_type)),
        "source": "config",
    }
    if model_type in VISION_MODELS:
        vision = _section(values, "vision_config", name)
        if not vision:
            raise UserError(f"The config of '{name}' has no 'vision_config'. Read it with AutoConfig.from_pretrained.")
        entry["model_type"] = model_type
        if VISION_MODELS[model_type] == "vit":
            entry |= _vit(values, vision, model_type, decoder["hidden"], name)
        elif model_type == "gemma4":
            entry |= _gemma4_tower(vision, decoder["hidden"], name)
        else:
            entry |= _qwen(vision, model_type, decoder["hidden"], name)
    return from_entry(name, entry)


def _values(config: Any) -> dict[str, Any]:
    if isinstance(config, (str, Path)):
        return _read(Path(config))
    config = getattr(config, "config", config)
    return dict(config) if isinstance(config, dict) else config.to_dict()


def _read(path: Path) -> dict[str, Any]:
    """A config.json as a dictionary; raises UserError where the file is none."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise UserError(f"Cannot read config '{path}': it has more than {LARGEST // 10**6} MB.")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read config '{path}': {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"Cannot read config '{path}': its values stand too deep in each other.") from None
    except ValueError as error:
        raise UserError(f"Cannot read config '{path}': {str(error).partition(';')[0]}.") from None
    if not isinstance(values, dict):
        raise UserError(f"Cannot read config '{path}': a config.json is a JSON object, not a {type(values).__name__}.")
    return values


def _section(values: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """A part of a config; {} where it is missing."""
    part = values.get(key)
    if part is not None and not isinstance(part, dict):
        raise UserError(f"The '{key}' in the config of '{name}' must be an object, not {_short(part)}.")
    return part or {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _need(values: dict[str, Any], keys: tuple[str, ...], name: str) -> int:
    """The first of these sizes that the config has."""
    for key in keys:
        if values.get(key) is not None:
            return _whole(values[key], key, name)
    raise UserError(f"The config of '{name}' has no '{keys[0]}'. Read it with AutoConfig.from_pretrained.")


def _whole(value: Any, key: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"'{key}' in the config of '{name}' must be a whole number of at least 1, not {_short(value)}.")
    return value


def _may(values: dict[str, Any], key: str, default: int, name: str) -> int:
    """A size that a config may leave out, or write as null or 0."""
    return _whole(values[key], key, name) if values.get(key) else default


def _decoder(text: dict[str, Any], name: str) -> dict[str, Any]:
    heads = _need(text, ("num_attention_heads",), name)
    return {
        **_experts(text, name),
        **_windows(text, name),
        **_linear(text, name),
        **_gemma4(text, name),
        "hidden": _need(text, ("hidden_size",), name),
        "layers": _need(text, ("num_hidden_layers",), name),
        "heads": heads,
        "kv_heads": _may(text, "num_key_value_heads", heads, name),
        "intermediate": _need(text, ("intermediate_size", "moe_intermediate_size"), name),
        "vocab": _need(text, ("vocab_size",), name),
        "head_dim": _may(text, "head_dim", 0, name),
    }


def _experts(text: dict[str, Any], name: str) -> dict[str, Any]:
    """A mixture of experts, as Qwen3-VL writes it; {} where there is none."""
    if not text.get("moe_intermediate_size") or not text.get("num_experts_per_tok"):  # Gemma 4 writes them otherwise
        return {}
    layers, step = _need(text, ("num_hidden_layers",), name), _may(text, "decoder_sparse_step", 1, name)
    dense = text.get("mlp_only_layers") or ()
    if not isinstance(dense, (list, tuple)) or len(dense) > MOST_VIEWS:
        raise UserError(f"'mlp_only_layers' in the config of '{name}' must be a list of layers, not {_short(dense)}.")
    return {
        "experts": _need(text, ("num_experts", "num_local_experts"), name),
        "active_experts": _need(text, ("num_experts_per_tok",), name),
        "expert_intermediate": _whole(text["moe_intermediate_size"], "moe_intermediate_size", name),
        "dense_layers": [layer for layer in range(layers) if layer in dense or (layer + 1) % step],
        "beside_experts": _may(text, "shared_expert_intermediate_size", 0, name),
        "beside_gated": bool(text.get("shared_expert_intermediate_size")),
    }


def _gemma4(text: dict[str, Any], name: str) -> dict[str, Any]:
    """What differs between Gemma 4's layers; {} for other models."""
    if "num_kv_shared_layers" not in text:
        return {}
    each = text.get("per_layer_config") or {}  # so a loaded config writes the sizes of full layers
    full: dict[str, Any] = next(iter(each.values()), {}) if isinstance(each, dict) else {}
    entry = {
        "shared_kv_layers": _may(text, "num_kv_shared_layers", 0, name),
        "full_head_dim": _may({**text, **({"global_head_dim": full["head_dim"]} if full else {})}, "global_head_dim", 512, name),
        "full_kv_heads": _may(text, "num_global_key_value_heads", full.get("num_key_value_heads") or 0, name),
        "key_is_value": bool(text.get("attention_k_eq_v")),
        "wide_shared_mlp": bool(text.get("use_double_wide_mlp")),
        "per_layer_width": _may(text, "hidden_size_per_layer_input", 0, name),
    }
    if not text.get("enable_moe_block"):
        return entry
    experts = {"experts": _need(text, ("num_experts",), name), "active_experts": _need(text, ("top_k_experts",), name)}
    beside = {"beside_experts": _need(text, ("intermediate_size",), name), "beside_gated": False, "dense_layers": []}
    return {**entry, **experts, **beside, "expert_intermediate": _need(text, ("moe_intermediate_size",), name)}


def _linear(text: dict[str, Any], name: str) -> dict[str, Any]:
    """Linear-attention layers, as Qwen3.5 writes them, whose other layers gate their output; {} where there are none."""
    layers = [index for index, kind in enumerate(text.get("layer_types") or ()) if kind == "linear_attention"]
    if not layers:
        return {}
    return {
        "gated_attention": True,
        "linear": {
            "layers": layers,
            "key_heads": _need(text, ("linear_num_key_heads",), name),
            "value_heads": _need(text, ("linear_num_value_heads",), name),
            "key_dim": _need(text, ("linear_key_head_dim",), name),
            "value_dim": _need(text, ("linear_value_head_dim",), name),
            "kernel": _may(text, "linear_conv_kernel_dim", 4, name),
        },
    }


def _windows(text: dict[str, Any], name: str) -> dict[str, Any]:
    """Sliding-window layers among full ones, as Gemma writes them; {} where there are none."""
    types = text.get("layer_types") or ()
    if not isinstance(types, (list, tuple)) or len(types) > MOST_VIEWS:
        raise UserError(f"'layer_types' in the config of '{name}' must be a list of layer types, not {_short(types)}.")
    if "sliding_attention" not in types:
        return {}
    full = [index for index, kind in enumerate(types) if kind != "sliding_attention"]
    return {"window": _need(text, ("sliding_window",), name), "full_attention_layers": full}


def _side(vision: dict[str, Any], key: str, name: str) -> int:
    """A size in pixels that may be written as (height, width)."""
    value = vision.get(key)
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return _whole(value[0], key, name)
    return _need(vision, (key,), name)


def _vit(values: dict[str, Any], vision: dict[str, Any], model_type: str, hidden: int, name: str) -> dict[str, Any]:
    kind = str(vision.get("model_type") or "clip_vision_model")
    if kind not in CLASS_TOKEN:
        raise UserError(f"The vision tower '{kind}' of '{name}' is unknown here. Known are: {', '.join(CLASS_TOKEN)}.")
    tower: dict[str, Any] = {
        "kind": "vit",
        "hidden": _need(vision, ("hidden_size",), name),
        "layers": _need(vision, ("num_hidden_layers",), name),
        "heads": _need(vision, ("num_attention_heads",), name),
        "intermediate": _need(vision, ("intermediate_size",), name),
        "patch": _side(vision, "patch_size", name),
        "image_size": _side(vision, "image_size", name),
        "class_token": CLASS_TOKEN[kind],
        "pooling_head": kind == "siglip_vision_model" and bool(vision.get("vision_use_head")),
        "channels": _may(vision, "num_channels", 3, name),
    }
    shuffled = _shuffle(values, model_type, tower, name)
    layers = values.get("vision_feature_layer", -1 if shuffled or model_type == "idefics2" else -2)
    features = len(layers) if isinstance(layers, (list, tuple)) else 1
    wanted = layers[-1] if isinstance(layers, (list, tuple)) and layers else layers
    if isinstance(wanted, int) and wanted:  # hidden state n is the output of layer n - 1
        tower["feature_layer"] = wanted if wanted < 0 else wanted - 1
    side = tower["image_size"] // tower["patch"]
    tokens = side * side + (values.get("vision_feature_select_strategy") == "full" and tower["class_token"])
    entry: dict[str, Any] = {
        "vision": tower,
        "projector": {"inputs": features * tower["hidden"], "hidden": hidden, "outputs": hidden},
        "image": {"view_tokens": [tokens]},
    }
    if shuffled:
        inputs = tower["hidden"] * shuffled**2
        tower["merge"] = shuffled
        entry["projector"] = {"inputs": inputs, "hidden": hidden if model_type == "internvl" else 0, "outputs": hidden}
        if model_type == "gemma3":  # patches are averaged, not joined
            entry["projector"]["inputs"] = tower["hidden"]
        entry["image"] = {"view_tokens": [(side // shuffled) ** 2]}  # one tile
    if model_type == "llava_onevision":
        entry["image"] = {"view_tokens": [tokens, tokens], "structural": side, "encoder_views": [tokens, tokens]}
        entry["video"] = {"tokens": (-(-side // 2)) ** 2, "encoder_tokens": tokens, "structural": 1}
    if model_type == "video_llava":
        entry["video"] = {"tokens": tokens, "through": 1}  # each frame's CLS token
    if model_type == "llava_next_video":
        stride = _may(values, "spatial_pool_stride", 2, name)
        entry["video"] = {"tokens": (side // stride) ** 2, "merged": stride**2}
    if model_type in ("internvl", "smolvlm"):  # whose frames go in as pictures
        entry["video"] = {"tokens": entry["image"]["view_tokens"][0], "apart": True}
    if model_type == "idefics2":
        entry |= _resampled(values, tower, hidden, name)
    if model_type in ("llava_next", "llava_next_video"):
        grid = [tokens, 4 * tokens]
        entry["image"] = {"view_tokens": grid, "structural": 2 * side, "encoder_views": [tokens] * 5}
    return entry


def _resampled(values: dict[str, Any], tower: dict[str, Any], hidden: int, name: str) -> dict[str, Any]:
    """Idefics2: all patches pass a gated projection, and a resampler makes the same number of tokens of them."""
    shape, text = _section(values, "perceiver_config", name), _section(values, "text_config", name)
    heads = _may(shape, "resampler_n_heads", 16, name)
    latents = _may(shape, "resampler_n_latents", 64, name)
    return {
        "projector": {
            "inputs": tower["hidden"],
            "hidden": _need(text, ("intermediate_size",), name),
            "outputs": hidden,
            "gated": True,
        },
        "resampler": {
            "latents": latents,
            "layers": _may(shape, "resampler_depth", 3, name),
            "heads": heads,
            "kv_heads": _may(shape, "num_key_value_heads", 4, name),
            "head_dim": _may(shape, "resampler_head_dim", 96, name),
        },
        "image": {"view_tokens": [latents]},
    }


def _shuffle(values: dict[str, Any], model_type: str, tower: dict[str, Any], name: str) -> int:
    """How many patches a side become one token by a pixel shuffle or by pooling; 0 where each is a token."""
    if model_type == "gemma3":
        return tower["image_size"] // tower["patch"] // max(1, math.isqrt(_may(values, "mm_tokens_per_image", 256, name)))
    if model_type == "internvl":
        ratio = values.get("downsample_ratio", 0.5)
        if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise UserError(f"'downsample_ratio' in the config of '{name}' must be a number up to 1, not {_short(ratio)}.")
        return round(1 / ratio)
    return _may(values, "scale_factor", 2, name) if model_type in ("idefics3", "smolvlm") else 0


def _gemma4_tower(vision: dict[str, Any], hidden: int, name: str) -> dict[str, Any]:
    width = _need(vision, ("hidden_size",), name)
    tower = {
        "kind": "gemma4",
        "hidden": width,
        "layers": _need(vision, ("num_hidden_layers",), name),
        "heads": _need(vision, ("num_attention_heads",), name),
        "intermediate": _need(vision, ("intermediate_size",), name),
        "patch": _need(vision, ("patch_size",), name),
        "merge": _may(vision, "pooling_kernel_size", 3, name),
        "gated": True,
    }
    return {"vision": tower, "projector": {"inputs": width, "hidden": 0, "outputs": hidden}}


def _qwen(vision: dict[str, Any], model_type: str, hidden: int, name: str) -> dict[str, Any]:
    merge = _may(vision, "spatial_merge_size", 2, name)
    windowed = model_type == "qwen2_5_vl"
    newer = model_type != "qwen2_vl"
    width = _need(vision, ("hidden_size",) if newer else ("embed_dim",), name)
    ratio = vision.get("mlp_ratio") or 4
    if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1000:
        raise UserError(f"'mlp_ratio' in the config of '{name}' must be a number above 0, not {_short(ratio)}.")
    full = vision.get("fullatt_block_indexes") or ()
    if not isinstance(full, (list, tuple)) or len(full) > MOST_VIEWS:
        raise UserError(f"'fullatt_block_indexes' in the config of '{name}' must be a list of layers, not {_short(full)}.")
    tower: dict[str, Any] = {
        "kind": VISION_MODELS[model_type],
        "hidden": width,
        "layers": _need(vision, ("depth", "num_hidden_layers"), name),
        "heads": _need(vision, ("num_heads", "num_attention_heads"), name),
        "intermediate": _need(vision, ("intermediate_size",), name) if newer else int(width * ratio),
        "patch": _need(vision, ("patch_size",), name),
        "temporal_patch": _may(vision, "temporal_patch_size", 2, name),
        "merge": merge,
        "deepstack": len(vision.get("deepstack_visual_indexes") or ()) if VISION_MODELS[model_type] == "qwen3-vl" else 0,
        "gated": windowed,
        "window": _need(vision, ("window_size",), name) if windowed else 0,
        "full_attention_layers": list(full) if windowed else [],
        "channels": _may(vision, "in_channels", 3, name),
    }
    outputs = _may(vision, "out_hidden_size" if newer else "hidden_size", hidden, name)
    inner = width * merge**2
    return {"vision": tower, "projector": {"inputs": inner, "hidden": inner, "outputs": outputs}}
