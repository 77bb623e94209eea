"""Qwen2-VL and Qwen2.5-VL: dynamic resolution, M-RoPE; the projector (merger) joins 2 x 2 patches into one token.

A token before the projector is therefore one merge unit: its four patches concatenated [4 x width], and its q and k
are the means of the four patches' (Qwen2.5-VL's window order is undone), as the published Qwen ports do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenzoo.host.encoder import LayerRecord
from tokenzoo.host.family import Family, Module, VisualSource, rotated
from tokenzoo.method import ops
from tokenzoo.method.workload import Source


class Qwen2VL(Family):
    name = "qwen2-vl"
    model_types = ("qwen2_vl", "qwen2_5_vl")
    mrope = True

    def takes_smaller_pictures(self, model: Module) -> bool:
        return True

    def decoder(self, model: Module) -> Module:
        return self.root(model).language_model

    def root(self, model: Module) -> Module:
        return model.model if hasattr(model, "lm_head") else model

    def projector(self, model: Module) -> Module:
        return self.root(model).visual.merger

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        return self.root(model).visual.blocks

    def encoder_heads(self, model: Module) -> int:
        return model.config.vision_config.num_heads

    def feature_layer(self, model: Module) -> int:
        return len(self.encoder_layers(model)) - 1

    def encoder_projections(self, layer: Module) -> tuple[Module, ...]:
        return (layer.attn.qkv,)

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        grids = call.get(f"{kind}_grid_thw")
        if grids is None:
            return []
        side = model.config.vision_config.spatial_merge_size
        return [self._source(kind, frames, height, width, side) for frames, height, width in grids.tolist()]

    def _source(self, kind: str, frames: int, height: int, width: int, side: int) -> VisualSource:
        grid = (height // side, width // side)
        tokens = grid[0] * grid[1]
        view = torch.arange(frames).repeat_interleave(tokens)
        source = Source(kind, (tokens,) * frames, grids=(grid,) * frames)  # type: ignore[arg-type]
        return VisualSource(source, view, (grid,) * frames, one_to_one=True)

    # --- the projector ------------------------------------------------------------------------------------------

    def _raster_units(self, model: Module, patches: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Group patches [patches, width] into units [units, side², width] in raster order, per source."""
        visual = self.root(model).visual
        unit = visual.spatial_merge_size**2
        units = patches.view(len(patches) // unit, unit, -1)
        if hasattr(visual, "window_size"):
            units = units[torch.argsort(self._window_index(visual, sources).to(units.device))]
        return list(units.split([sum(source.source.view_tokens) for source in sources]))

    def _window_index(self, visual: Module, sources: Sequence[VisualSource]) -> torch.Tensor:
        from transformers.vision_utils import get_vision_window_index

        side = visual.spatial_merge_size
        thw = torch.tensor([[len(s.grids), s.grids[0][0] * side, s.grids[0][1] * side] for s in sources])
        return get_vision_window_index(
            thw, spatial_merge_size=side, window_size=visual.window_size, patch_size=visual.patch_size, kwargs={}
        )[0]

    def split_features(self, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        return [units.flatten(1) for units in self._raster_units(model, features, sources)]

    def split_recorded(
        self, model: Module, recorded: Sequence[torch.Tensor], sources: Sequence[VisualSource]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        query, key, _ = recorded[0].chunk(3, dim=-1)
        parts = []
        for states in (query, key):
            units = self._raster_units(model, states, sources)
            parts.append([u.mean(1).view(len(s.grids), -1, u.shape[-1]) for u, s in zip(units, sources, strict=True)])
        return list(zip(*parts, strict=True))

    def split_outputs(self, model: Module, output: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """The mean of each merge unit's patches, [views, tokens, width] per source."""
        units = self._raster_units(model, output, sources)
        return [u.mean(1).view(len(s.grids), -1, u.shape[-1]) for u, s in zip(units, sources, strict=True)]

    def encoder_attention(
        self, model: Module, record: LayerRecord, sources: Sequence[VisualSource], number: int, queries: str
    ) -> torch.Tensor:
        """Patches attend within their frame, in most layers of Qwen2.5-VL within their window; a token is its patches' mean."""
        heads, (patches, _) = self.encoder_heads(model), record.projections[0].shape
        cos, sin = (angles[:, None].float() for angles in record.arguments["position_embeddings"])
        frames, views = len(sources[number].grids), []
        for states in record.projections[0].view(patches, 3, heads, -1).unbind(1)[:2]:
            turned = rotated(states.float(), cos, sin).flatten(1)
            units = self._raster_units(model, turned, sources)[number]
            views.append(units.view(frames, -1, heads, cos.shape[-1]).transpose(1, 2))
        borders = record.arguments["cu_seqlens"]
        place = torch.arange(patches, device=borders.device)
        window = torch.searchsorted(borders, place, right=True)[:, None]
        segments = self._raster_units(model, window, sources)[number].view(frames, -1)
        weights = torch.cat(
            [
                ops.encoder_attention(query[None], key[None], query.shape[-1] ** -0.5, queries, segment)
                for query, key, segment in zip(*views, segments, strict=True)
            ]
        )
        side = model.config.vision_config.spatial_merge_size
        return weights.unflatten(-1, (-1, side**2)).mean(-1).transpose(1, 2)

    def projector_input(self, model: Module, features: torch.Tensor) -> torch.Tensor:
        return features.reshape(-1, features.shape[-1] // model.config.vision_config.spatial_merge_size**2)

    def projector_output(self, model: Module, output: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return output

    def placeholder_output(self, model: Module, features: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        units = len(features) // model.config.vision_config.spatial_merge_size**2
        return output.new_zeros(1).expand(units, output.shape[-1])

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return {
            "vision_hidden": width * vision.spatial_merge_size**2,
            "encoder_hidden": width,
            "encoder_layers": vision.depth,
            "encoder_merge": vision.spatial_merge_size**2,
        }
