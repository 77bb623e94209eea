"""Gemma 4: any resolution pooled to few tokens, heads that differ by layer type, and in the small models two more things.

Each decoder layer is given an input of its own for each row (per-layer inputs), and the last layers read keys and values of
earlier ones. Images are open to themselves in the layers with a sliding window alone, and in the large models alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.encoder import LayerRecord
from tokenzoo.host.families.llava import Llava
from tokenzoo.host.family import FULL, Module, VisualSource, numbers_of, rotated
from tokenzoo.method import ops
from tokenzoo.method.workload import Architecture, Source


class Gemma4(Llava):
    name = "gemma4"
    model_types = ("gemma4",)
    per_layer_type = True
    row_arguments = ("per_layer_inputs",)
    layer_arguments = ("per_layer_input",)

    def projector(self, model: Module) -> Module:
        return self.root(model).embed_vision

    def has_cls(self, model: Module) -> bool:
        return False

    def takes_smaller_pictures(self, model: Module) -> bool:
        return False

    # --- the encoder --------------------------------------------------------------------------------------------

    def patches_per_side(self, model: Module, kind: str) -> int:
        return model.config.vision_config.pooling_kernel_size

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        positions = call.get(f"{kind}_position_ids")
        if positions is None:
            return []
        views = torch.ones(len(positions), dtype=torch.long) if kind == "image" else call.get("num_frames_per_video")
        if views is None:
            raise UnsupportedError(
                "Videos of Gemma 4 need num_frames_per_video, and this call came without it. A forward hands it on from "
                "transformers 5.23 on: pip install 'transformers>=5.23', or call generate."
            )
        side = self.patches_per_side(model, kind)
        last = positions.amax(1)
        raster = positions[..., 1] * (last[:, :1] + 1) + positions[..., 0]
        ordered = (raster == torch.arange(positions.shape[1], device=raster.device)) | (positions < 0).all(-1)
        sizes, counts, in_order = numbers_of(last + 1, views, ordered.all()[None])
        if not in_order[0]:
            raise UnsupportedError(f"The patches of {kind}_position_ids are not in raster order. Use the model's own processor.")
        grids = iter([(rows // side, columns // side) for columns, rows in sizes])
        return [self._source(kind, [next(grids) for _ in range(count)]) for count in counts]

    def _source(self, kind: str, grids: list[tuple[int, int]]) -> VisualSource:
        tokens = tuple(rows * columns for rows, columns in grids)
        view = torch.arange(len(grids)).repeat_interleave(torch.tensor(tokens))
        source = Source(kind, tokens, grids=tuple(grids))  # type: ignore[arg-type]
        return VisualSource(source, view, tuple(grids), one_to_one=True)

    def encoder_projections(self, layer: Module) -> tuple[Module, ...]:
        """The norms of q and k, which each head passes before the rotary embedding."""
        return layer.self_attn.q_norm, layer.self_attn.k_norm

    def _pooled(self, model: Module, states: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Patches [views, patches, ...] of padded views as the means that become tokens, [views, tokens, ...] per source."""
        side, parts, start = self.patches_per_side(model, "image"), [], 0
        for source in sources:
            views = []
            for rows, columns in source.encoder_grids:
                patches = states[start, : rows * columns * side**2].unflatten(0, (rows, side, columns, side))
                views.append(patches.mean((1, 3)).flatten(0, 1))
                start += 1
            parts.append(torch.stack(views))
        return parts

    def split_features(self, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        return list(features.split([sum(source.source.view_tokens) for source in sources]))

    def split_recorded(
        self, model: Module, recorded: Sequence[torch.Tensor], sources: Sequence[VisualSource]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        query, key = (self._pooled(model, states.flatten(2), sources) for states in recorded)
        return list(zip(query, key, strict=True))

    def split_outputs(self, model: Module, output: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        return self._pooled(model, output, sources)

    def encoder_attention(
        self, model: Module, record: LayerRecord, sources: Sequence[VisualSource], number: int, queries: str
    ) -> torch.Tensor:
        """Patches attend within their view, turned by their row in one half of the channels and their column in the other."""
        cos, sin = (angles[:, :, None].float() for angles in record.arguments["position_embeddings"])
        turned = []
        for states in record.projections[:2]:
            halves = zip(*(part.chunk(2, dim=-1) for part in (states.float(), cos, sin)), strict=True)
            turned.append(torch.cat([rotated(*half) for half in halves], dim=-1))
        start = sum(len(source.encoder_grids) for source in sources[:number])
        side, views = self.patches_per_side(model, "image"), []
        for view, (rows, columns) in enumerate(sources[number].encoder_grids, start):
            query, key = (states[view : view + 1, : rows * columns * side**2].transpose(1, 2) for states in turned)
            weights = ops.encoder_attention(query, key, 1.0, queries)[0]  # [heads, patches]
            views.append(weights.T.unflatten(0, (rows, side, columns, side)).mean((1, 3)).flatten(0, 1))
        return torch.stack(views)

    # --- the projector ------------------------------------------------------------------------------------------

    def projector_input(self, model: Module, features: torch.Tensor) -> torch.Tensor:
        return features

    def projector_output(self, model: Module, output: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return output

    # --- the decoder --------------------------------------------------------------------------------------------

    def decoder_projections(self, layer: Module) -> tuple[Module, Module] | None:
        return super().decoder_projections(layer) if hasattr(layer.self_attn, "k_proj") else None

    def opens_images(self, layer_type: str) -> bool:
        return layer_type != FULL

    def decoder_config(self, model: Module) -> Any:
        return super().decoder_config(model).per_layer_config["sliding_attention"]

    def architecture(self, model: Module) -> Architecture:
        config = self.decoder(model).config
        if config.use_bidirectional_attention == "all":
            raise UnsupportedError(
                "In this Gemma 4 model all tokens see each other; only a causal one can lose tokens on its way."
            )
        full = tuple(index for index, kind in enumerate(config.layer_types) if kind == FULL)
        return replace(super().architecture(model), full_attention_layers=full, shared_kv_layers=config.num_kv_shared_layers)

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        return {**super().vision_dimensions(model, vision), "encoder_merge": vision.pooling_kernel_size**2}
