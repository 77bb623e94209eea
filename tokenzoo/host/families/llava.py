"""LLaVA-1.5: a CLIP (or SigLIP) encoder, a two-layer projector, a Llama decoder; one view per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.method.workload import Source


class Llava(Family):
    name = "llava"
    model_types: tuple[str, ...] = ("llava",)

    def decoder(self, model: Module) -> Module:
        return self.root(model).language_model

    def root(self, model: Module) -> Module:
        return model.model if hasattr(model, "lm_head") else model

    def projector(self, model: Module) -> Module:
        return self.root(model).multi_modal_projector

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        tower = self.root(model).vision_tower
        if not hasattr(tower, "encoder"):
            raise UnsupportedError(
                f"No adapter for the vision tower {type(tower).__name__} in a '{model.config.model_type}' model; CLIP and SigLIP "
                "have one. To add yours, see docs/model-families.md."
            )
        return tower.encoder.layers

    def has_cls(self, model: Module) -> bool:
        return model.config.vision_config.model_type.startswith("clip")

    def pooling_head(self, model: Module) -> Module | None:
        tower = self.root(model).vision_tower
        return getattr(tower, "head", None) if getattr(tower, "use_head", False) else None

    def takes_smaller_pictures(self, model: Module) -> bool:
        return self.name == "llava"

    def position_table(self, model: Module) -> Module | None:
        return getattr(self.root(model).vision_tower, "embeddings", None)

    def encoder_mlp(self, layer: Module) -> tuple[Module, Module] | None:
        config = getattr(getattr(layer, "self_attn", None), "config", None)
        served = getattr(config, "model_type", "") in ("clip_vision_model", "siglip_vision_model")
        return (layer.layer_norm2, layer.mlp) if served else None

    def patch_grid(self, model: Module) -> tuple[int, int]:
        """Rows and columns of patches of one encoder view."""
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return side, side

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        pixels = call.get("pixel_values")
        if kind == "video" or pixels is None:
            return []
        grid = self.patch_grid(model)
        if self.takes_smaller_pictures(model):
            patch = model.config.vision_config.patch_size
            grid = int(pixels.shape[-2]) // patch, int(pixels.shape[-1]) // patch  # tensors where fvcore traces the call
        cls = int(strategy(model, call) == "full" and self.has_cls(model))
        return [with_cls("image", grid, 1, cls)] * len(pixels)


def with_cls(kind: Literal["image", "video"], grid: tuple[int, int], views: int, cls: int, merged: int = 0) -> VisualSource:
    """An image, or a video of several views, each of `grid` tokens; with `cls` a CLS token goes to the LLM ahead of each."""
    tokens = grid[0] * grid[1]
    view = torch.arange(views).repeat_interleave(tokens + cls)
    if cls:
        view[:: tokens + 1] = -1
    source = Source(kind, (tokens,) * views, cls * views, grids=(grid,) * views, through=cls * views, merged=merged)
    return VisualSource(source, view, (grid,) * views, one_to_one=True)


def strategy(model: Module, call: Mapping[str, Any]) -> str:
    """Which encoder tokens go to the projector: "default" leaves CLS out, "full" does not."""
    return str(call.get("vision_feature_select_strategy") or getattr(model.config, "vision_feature_select_strategy", "default"))
