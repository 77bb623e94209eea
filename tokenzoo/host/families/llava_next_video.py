"""LLaVA-NeXT-Video: LLaVA-NeXT's images, and videos whose frames are pooled between encoder and projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenzoo.host.families.llava import with_cls
from tokenzoo.host.families.llava_next import LlavaNext
from tokenzoo.host.family import Module, VisualSource


class LlavaNextVideo(LlavaNext):
    name = "llava-next-video"
    model_types = ("llava_next_video",)

    def patches_per_side(self, model: Module, kind: str) -> int:
        return model.config.spatial_pool_stride if kind == "video" else 1

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        if kind == "image":
            return super().sources(model, call, kind)
        pixels = call.get("pixel_values_videos")
        if pixels is None:
            return []
        rows, columns = self.patch_grid(model)
        side = self.patches_per_side(model, kind)
        return [with_cls("video", (rows // side, columns // side), pixels.shape[1], 0, side**2)] * len(pixels)
