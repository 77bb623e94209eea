"""Gemma 3: SigLIP pooled to 256 tokens; layers of two types, each with a mask and a rotary embedding of its own.

Most layers see a sliding window; in all of them the tokens of one image see each other. The projector pools and then
multiplies with a bare parameter, so what is left of a picture cut before it is projected here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenzoo.host.families.llava import Llava
from tokenzoo.host.family import Module, VisualSource, join_patches
from tokenzoo.host.placement import own_parameters


class Gemma3(Llava):
    name = "gemma3"
    model_types = ("gemma3",)
    per_layer_type = True

    def has_cls(self, model: Module) -> bool:
        return False

    def patches_per_side(self, model: Module, kind: str) -> int:
        return self.projector(model).kernel_size

    def patch_grid(self, model: Module) -> tuple[int, int]:
        side = self.projector(model).tokens_per_side
        return side, side

    def mlp_branch(self, layer: Module) -> tuple[Module, Module]:
        return layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm

    def split_features(self, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        return super().split_features(model, join_patches(features, self.patches_per_side(model, "image")), sources)

    def projector_input(self, model: Module, features: torch.Tensor) -> torch.Tensor:
        """No view at all: pooling takes whole views."""
        return features.new_empty(0, self.projector(model).patches_per_image ** 2, features.shape[-1])

    def projector_output(self, model: Module, output: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        projector = self.projector(model)
        with own_parameters(projector):
            weight = projector.mm_input_projection_weight
            return (projector.mm_soft_emb_norm(features.to(weight.device)) @ weight).to(output)

    def placeholder_output(self, model: Module, features: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        rows, columns = self.patch_grid(model)
        return output.new_zeros(1).expand(len(features), rows * columns, output.shape[-1])

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        return {**super().vision_dimensions(model, vision), "encoder_merge": self.patches_per_side(model, "image") ** 2}
