"""Read a Hugging Face config (object, dictionary or config.json) as a `ModelArchitecture`, without importing torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenzoo.cost.architecture import ModelArchitecture, from_entry
from tokenzoo.errors import UserError

#: model_type of what is read, and whether its tokens pass a two-layer projector or Qwen's merger.
VISION_MODELS = {
    "llava": "vit",
    "llava_next": "vit",
    "llava_onevision": "vit",
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
}


def architecture_of(config: Any, name: str = "") -> ModelArchitecture:
    """Return the architecture that a Hugging Face config, a model with one, or a config.json describes.

    Raises UserError where a size is missing: a bare config.json leaves out what its class has as default;
    `AutoConfig.from_pretrained` fills it in.
    """
    values = _values(config)
    model_type = str(values.get("model_type", ""))
    name = name or str(values.get("_name_or_path") or "") or model_type or "model"
    text = values.get("text_config") or values
    decoder = _decoder(text, name)
    entry: dict[str, Any] = {
        "decoder": decoder,
        "skip_mlp_add": "qwen2" in str(text.get("model_type", model_type)),
        "source": "config",
    }
    if model_type in VISION_MODELS:
        read = _vit if VISION_MODELS[model_type] == "vit" else _qwen
        entry.update(read(values, model_type, int(decoder["hidden"]), name))
    return from_entry(name, entry)


def _values(config: Any) -> dict[str, Any]:
    if isinstance(config, (str, Path)):
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot read config '{config}': {error}.") from None
    config = getattr(config, "config", config)
    return dict(config) if isinstance(config, dict) else config.to_dict()


def _need(values: dict[str, Any], keys: tuple[str, ...], name: str) -> Any:
    for key in keys:
        if values.get(key) is not None:
            return values[key]
    raise UserError(f"The config of '{name}' has no '{keys[0]}'. Read it with AutoConfig.from_pretrained.")


def _decoder(text: dict[str, Any], name: str) -> dict[str, int]:
    heads = _need(text, ("num_attention_heads",), name)
    return {
        "hidden": _need(text, ("hidden_size",), name),
        "layers": _need(text, ("num_hidden_layers",), name),
        "heads": heads,
        "kv_heads": text.get("num_key_value_heads") or heads,
        "intermediate": _need(text, ("intermediate_size",), name),
        "vocab": _need(text, ("vocab_size",), name),
        "head_dim": text.get("head_dim") or 0,
    }


def _vit(values: dict[str, Any], model_type: str, hidden: int, name: str) -> dict[str, Any]:
    vision = values["vision_config"]
    tower = {
        "kind": "vit",
        "hidden": _need(vision, ("hidden_size",), name),
        "layers": _need(vision, ("num_hidden_layers",), name),
        "heads": _need(vision, ("num_attention_heads",), name),
        "intermediate": _need(vision, ("intermediate_size",), name),
        "patch": _need(vision, ("patch_size",), name),
        "image_size": _need(vision, ("image_size",), name),
        "class_token": "siglip" not in str(vision.get("model_type", "clip")),
        "channels": vision.get("num_channels") or 3,
    }
    if vision.get("vision_use_head") and "siglip" in str(vision.get("model_type", "")):
        raise UserError(f"'{name}' runs SigLIP's pooling head, which the closed form leaves out. Count it instead.")
    layers = values.get("vision_feature_layer", -2)
    features = 1 if isinstance(layers, int) else len(layers)
    side = tower["image_size"] // tower["patch"]
    tokens = side * side + (values.get("vision_feature_select_strategy") == "full" and tower["class_token"])
    entry: dict[str, Any] = {
        "vision": tower,
        "projector": {"inputs": features * tower["hidden"], "hidden": hidden, "outputs": hidden},
        "image": {"view_tokens": [tokens]},
    }
    if model_type == "llava_onevision":
        entry["image"] = {"view_tokens": [tokens, tokens], "structural": side, "encoder_views": [tokens, tokens]}
        entry["video"] = {"tokens": (-(-side // 2)) ** 2, "encoder_tokens": tokens, "structural": 1}
    if model_type == "llava_next":
        grid = [tokens, 4 * tokens]
        entry["image"] = {"view_tokens": grid, "structural": 2 * side, "encoder_views": [tokens] * 5}
    return entry


def _qwen(values: dict[str, Any], model_type: str, hidden: int, name: str) -> dict[str, Any]:
    vision = values["vision_config"]
    merge = vision.get("spatial_merge_size") or 2
    newer = model_type == "qwen2_5_vl"
    width = _need(vision, ("hidden_size",) if newer else ("embed_dim",), name)
    tower = {
        "kind": VISION_MODELS[model_type],
        "hidden": width,
        "layers": _need(vision, ("depth", "num_hidden_layers"), name),
        "heads": _need(vision, ("num_heads", "num_attention_heads"), name),
        "intermediate": vision["intermediate_size"] if newer else int(width * (vision.get("mlp_ratio") or 4)),
        "patch": _need(vision, ("patch_size",), name),
        "temporal_patch": vision.get("temporal_patch_size") or 2,
        "merge": merge,
        "gated": newer,
        "window": _need(vision, ("window_size",), name) if newer else 0,
        "full_attention_layers": list(vision.get("fullatt_block_indexes") or ()) if newer else [],
        "channels": vision.get("in_channels") or 3,
    }
    outputs = vision.get("out_hidden_size") if newer else vision.get("hidden_size")
    inner = width * merge**2
    return {"vision": tower, "projector": {"inputs": inner, "hidden": inner, "outputs": outputs or hidden}}
