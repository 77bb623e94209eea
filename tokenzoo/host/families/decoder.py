"""Bare decoders (LlamaModel, Qwen2ForCausalLM, …): given `inputs_embeds` and the spans of the visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.family import Family, Module, VisualSource


class DecoderOnly(Family):
    name = "decoder"
    model_types = ("llama", "qwen2", "mistral", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3")

    def decoder(self, model: Module) -> Module:
        return model if hasattr(model, "layers") else model.model

    def root(self, model: Module) -> Module | None:
        return None

    def projector(self, model: Module) -> Module:
        raise UnsupportedError(
            f"{type(model).__name__} is a bare decoder without a vision tower; a method that works before the "
            "projector needs the whole multimodal model."
        )

    def encoder_layers(self, model: Module) -> Sequence[Module]:
        return ()

    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        return []
