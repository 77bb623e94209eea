"""Qwen3-VL and its mixture of experts: Qwen2-VL's encoder with DeepStack, norms of q and k, timestamps between frames.

DeepStack: after each of its first layers the decoder adds features from an earlier encoder layer to its visual rows. They
are made of all patches before anything is dropped; a row that is left gets its own, a merged one its anchor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tokenzoo.host.families.qwen2_vl import Qwen2VL
from tokenzoo.host.family import Module


class Qwen3VL(Qwen2VL):
    name = "qwen3-vl"
    model_types = ("qwen3_vl", "qwen3_vl_moe")

    def added_layers(self, model: Module) -> int:
        return len(model.config.vision_config.deepstack_visual_indexes)

    def additions(self, model: Module, call: Mapping[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        features = call.get("deepstack_visual_embeds")
        if features is None:
            return [], {}
        dense = torch.zeros_like(call["inputs_embeds"])
        places = call["visual_pos_masks"][..., None].to(dense.device)
        additions = [dense.masked_scatter(places, values.to(dense)) for values in features]
        return additions, {"deepstack_visual_embeds": None, "visual_pos_masks": None}
