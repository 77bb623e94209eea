"""InternVL: an InternViT with a CLS token; a pixel shuffle joins 2 x 2 patches of a tile into one token.

Each tile is a source of its own, and so is each frame of a video: the call brings tiles, and does not tell which of them
make a picture. The text between frames ("Frame 1: ") stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenzoo.host.families.llava import Llava
from tokenzoo.host.family import Module


class InternVL(Llava):
    name = "internvl"
    model_types = ("internvl",)

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        return self.root(model).vision_tower.encoder.layer

    def encoder_projections(self, layer: Module) -> tuple[Module, ...]:
        """Behind the norms of q and k, which are identities where there are none."""
        return layer.attention.q_norm, layer.attention.k_norm

    def has_cls(self, model: Module) -> bool:
        return True

    def patches_per_side(self, model: Module, kind: str) -> int:
        return round(1 / model.config.downsample_ratio)

    def patch_grid(self, model: Module) -> tuple[int, int]:
        vision, side = model.config.vision_config, self.patches_per_side(model, "image")
        rows, columns = (size // patch // side for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
        return rows, columns

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        unit = self.patches_per_side(model, "image") ** 2
        return {**super().vision_dimensions(model, vision), "vision_hidden": vision.hidden_size * unit, "encoder_merge": unit}
