"""LLaVA-1.5: a CLIP (or SigLIP) encoder, a two-layer projector, a Llama decoder; one view per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.method.workload import Source


class Llava(Family):
    name = "llava"
    model_types = ("llava",)

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
        tokens = grid[0] * grid[1]
        view = torch.zeros(tokens, dtype=torch.long)
        if strategy(model, call) == "full" and self.has_cls(model):  # the CLS token goes to the LLM too, ahead of the patches
            view = torch.cat([torch.tensor([-1]), view])
            source = Source("image", (tokens,), 1, (tokens + 1,), grids=(grid,))
            image = VisualSource(source, view, ((1, tokens + 1),), one_to_one=False, whole=False)
        else:
            image = VisualSource(Source("image", (tokens,), grids=(grid,)), view, (grid,), one_to_one=True)
        return [image] * len(pixels)


def strategy(model: Module, call: Mapping[str, Any]) -> str:
    """Which encoder tokens go to the projector: "default" leaves CLS out, "full" does not."""
    return call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
