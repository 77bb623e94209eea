"""Idefics3 and SmolVLM: SigLIP with a pixel shuffle, tiles with text between them; Idefics2: a resampler of latent tokens.

Each tile is a source of its own: the call does not tell which tiles make an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.encoder import LayerRecord
from tokenzoo.host.families.llava import Llava, with_cls
from tokenzoo.host.family import Module, VisualSource


class Idefics3(Llava):
    name = "idefics3"
    model_types: tuple[str, ...] = ("idefics3", "smolvlm")

    def decoder(self, model: Module) -> Module:
        return self.root(model).text_model

    def projector(self, model: Module) -> Module:
        """Behind the pixel shuffle."""
        return self.root(model).connector.modality_projection

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        return self.root(model).vision_model.encoder.layers

    def has_cls(self, model: Module) -> bool:
        return False

    def pooling_head(self, model: Module) -> Module | None:
        return None

    def patches_per_side(self, model: Module, kind: str) -> int:
        return model.config.scale_factor

    def patch_grid(self, model: Module) -> tuple[int, int]:
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size // self.patches_per_side(model, "image")
        return side, side

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        pixels = call.get("pixel_values")
        if kind == "video" or pixels is None:
            return []
        tiles = int((pixels != 0).flatten(2).any(-1).sum())  # the others only pad samples with fewer tiles
        return [with_cls("image", self.patch_grid(model), 1, 0)] * tiles

    def encoder_attention(
        self, model: Module, record: LayerRecord, sources: Sequence[VisualSource], number: int, queries: str
    ) -> torch.Tensor:
        if record.arguments.get("attention_mask") is not None:
            raise UnsupportedError(
                "The vision encoder masks padding inside the pictures, so its attention cannot be told. Let the processor "
                "resize them to whole tiles."
            )
        return super().encoder_attention(model, record, sources, number, queries)

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        unit = self.patches_per_side(model, "image") ** 2
        return {**super().vision_dimensions(model, vision), "vision_hidden": vision.hidden_size * unit, "encoder_merge": unit}


class Idefics2(Idefics3):
    """A resampler turns each picture into a fixed number of latent tokens, of which none belongs to a patch."""

    name = "idefics2"
    model_types = ("idefics2",)

    def projector(self, model: Module) -> Module:
        raise UnsupportedError(
            "Idefics2 resamples all patches of a picture into a fixed number of tokens, so no token can be dropped before "
            "that. Take a method that acts behind the projector."
        )

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        raise UnsupportedError(
            "Idefics2 resamples all patches of a picture into a fixed number of tokens, so nothing that the encoder knows of "
            "a patch belongs to a token. Take a method that reads the LLM alone."
        )

    def feature_layer(self, model: Module) -> int:
        return model.config.vision_config.num_hidden_layers - 1

    def patches_per_side(self, model: Module, kind: str) -> int:
        return 1

    def patch_grid(self, model: Module) -> tuple[int, int]:
        return 1, model.config.perceiver_config.resampler_n_latents
