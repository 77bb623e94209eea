"""LLaVA-NeXT (anyres): each image is a base view and tiles; the tiles' grid is unpadded and gets newline tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tokenzoo.host.families.llava import Llava
from tokenzoo.host.family import Module, VisualSource
from tokenzoo.method.workload import Source


class LlavaNext(Llava):
    name = "llava-next"
    model_types = ("llava_next",)

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        if kind == "video" or call.get("pixel_values") is None:
            return []
        return self.anyres_sources(model, call, [True] * len(call["image_sizes"]))

    def pack(self, model: Module, views: list[torch.Tensor], sizes: Any, call: Mapping[str, Any]) -> list[torch.Tensor]:
        """The model's own packing, used to learn where each view's tokens and the newlines end up."""
        strategy = call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        newline = torch.full((1,), -1.0)
        return self.root(model).pack_image_features(views, sizes, strategy, image_newline=newline)[0]

    def anyres_sources(self, model: Module, call: Mapping[str, Any], tiled: Sequence[bool]) -> list[VisualSource]:
        """Run the model's packing on one-channel features: 0 for the base view, 1 for the grid, -1 for newlines."""
        grid = self.patch_grid(model)
        tokens = grid[0] * grid[1]
        sizes = [size.tolist() if isinstance(size, torch.Tensor) else list(size) for size in call["image_sizes"]]
        counts = [
            image_size_to_num_patches(size, model.config.image_grid_pinpoints, model.config.vision_config.image_size)
            if split
            else 1
            for size, split in zip(sizes, tiled, strict=True)
        ]
        views = [torch.ones(count, tokens, 1) for count in counts]
        for view in views:
            view[0] = 0.0
        sources = []
        for count, packed in zip(counts, self.pack(model, views, sizes, call), strict=True):
            marks = packed[:, 0].round().long()
            grids: tuple[tuple[int, int], ...] = (grid,)
            if count > 1:
                newlines = int((marks == -1).sum())
                grids = (grid, (newlines, int((marks == 1).sum()) // newlines))
            view_tokens = tuple(int((marks == view).sum()) for view in range(len(grids)))
            source = Source("image", view_tokens, int((marks == -1).sum()), (tokens,) * count, grids)
            sources.append(VisualSource(source, marks, (grid,) * count, one_to_one=count == 1))
        return sources
