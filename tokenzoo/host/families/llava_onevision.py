"""LLaVA-OneVision: SigLIP and Qwen2; an image (anyres), several images (one view each), or a video (pooled frames)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from tokenzoo.host.families.llava_next import LlavaNext
from tokenzoo.host.family import Module, VisualSource, numbers_of
from tokenzoo.method.workload import Source


class LlavaOnevision(LlavaNext):
    name = "llava-onevision"
    model_types = ("llava_onevision",)

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        if kind == "video":
            return self.videos(model, call.get("pixel_values_videos"))
        if call.get("pixel_values") is None:
            return []
        per_sample = call.get("batch_num_images")
        tiled = [True] * len(call["image_sizes"])
        if per_sample is not None:  # several images in one sample are not tiled
            sizes, counts = numbers_of(call["image_sizes"], per_sample)
            tiled = [count == 1 for count in counts for _ in range(count)]
            call = {**call, "image_sizes": sizes}
        return self.anyres_sources(model, call, tiled)

    def pack(self, model: Module, views: list[torch.Tensor], sizes: Any, call: Mapping[str, Any]) -> list[torch.Tensor]:
        aspect = call.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        newline = views[0].new_full(views[0].shape[-1:], torch.nan)
        return self.root(model).pack_image_features(views, sizes, newline, aspect)[0]

    def videos(self, model: Module, pixels: torch.Tensor | None) -> list[VisualSource]:
        """Each frame is pooled 2 x 2; one newline ends the video."""
        if pixels is None:
            return []
        grid = self.patch_grid(model)
        pooled = (math.ceil(grid[0] / 2), math.ceil(grid[1] / 2))
        frames, tokens = pixels.shape[1], pooled[0] * pooled[1]
        view = torch.cat([torch.arange(frames).repeat_interleave(tokens), torch.tensor([-1])])
        source = Source("video", (tokens,) * frames, 1, (grid[0] * grid[1],) * frames, (pooled,) * frames)
        pack = partial(self.pooled, model)
        video = VisualSource(source, view, (grid,) * frames, one_to_one=False, pack=pack)
        return [video] * len(pixels)

    def pooled(self, model: Module, values: torch.Tensor) -> torch.Tensor:
        """Values [frames, tokens, channels] pooled as the model pools its features."""
        return self.root(model).apply_pooling(values.float()).flatten(0, 1)
