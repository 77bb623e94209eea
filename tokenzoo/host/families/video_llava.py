"""Video-LLaVA: a tower for images and one for videos, one projector; each frame's CLS token goes to the LLM with its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenzoo.host.families.llava import Llava, with_cls
from tokenzoo.host.family import IMAGES, Module, VisualSource


class VideoLlava(Llava):
    name = "video-llava"
    model_types = ("video_llava",)

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        return self.root(model).image_tower.encoder.layers

    def encoder_stacks(self, model: Module) -> list[Sequence[Module]]:
        """The image tower's layers and the video tower's: a call runs one of them."""
        return [self.encoder_layers(model), self.root(model).video_tower.encoder.layers]

    def pooling_head(self, model: Module) -> Module | None:
        return None

    def token_id(self, model: Module, kind: str) -> int | None:
        return getattr(model.config, f"{kind}_token_index", None)

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        if kind == "image":
            named = [call.get(name) for name in IMAGES]
            return super().sources(model, {**call, "pixel_values": next((one for one in named if one is not None), None)}, kind)
        pixels = call.get("pixel_values_videos")
        return [] if pixels is None else [with_cls("video", self.patch_grid(model), pixels.shape[1], 1)] * len(pixels)
