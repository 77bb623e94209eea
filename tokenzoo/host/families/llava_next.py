"""LLaVA-NeXT (anyres): each image is a base view and tiles; the tiles' grid is unpadded and gets newline tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from tokenzoo.host.families.llava import Llava, strategy
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
        """The model's own packing of features [views, tokens, channels]; newlines become NaN."""
        newline = views[0].new_full(views[0].shape[-1:], torch.nan)
        return self.root(model).pack_image_features(views, sizes, strategy(model, call), image_newline=newline)[0]

    def packed(
        self, model: Module, size: Any, call: Mapping[str, Any], marks: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Values [views, tokens, channels] of one image's patches in the order of its tokens in the LLM, newlines left out."""
        (row,) = self.pack(model, [values.float()], [size], call)
        return row[marks.to(row.device) >= 0]

    def anyres_sources(self, model: Module, call: Mapping[str, Any], tiled: Sequence[bool]) -> list[VisualSource]:
        """Run the model's packing on one-channel features: 0 for the base view, 1 for the grid, NaN for newlines."""
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
        for size, count, row in zip(sizes, counts, self.pack(model, views, sizes, call), strict=True):
            marks = row[:, 0].nan_to_num(-1.0).round().long()
            grids: tuple[tuple[int, int], ...] = (grid,)
            tiles = None
            if count > 1:
                side = model.config.vision_config.image_size
                tiles = get_anyres_image_grid_shape(size, model.config.image_grid_pinpoints, side)
                newlines = int((marks == -1).sum())
                grids = (grid, (newlines, int((marks == 1).sum()) // newlines))
            view_tokens = tuple(int((marks == view).sum()) for view in range(len(grids)))
            source = Source("image", view_tokens, int((marks == -1).sum()), (tokens,) * count, grids)
            pack = partial(self.packed, model, size, call, marks)
            sources.append(VisualSource(source, marks, (grid,) * count, one_to_one=count == 1, pack=pack, tiles=tiles))
        return sources
