"""Decoding after a reduction: each layer's cache has its own length, so each layer needs its own mask and position."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from tokenzoo.host.batch import Layout
from tokenzoo.host.family import LINEAR
from tokenzoo.host.masks import LayerTypes
from tokenzoo.host.prefill import Prefill
from tokenzoo.host.stages import Stage


class DecodingStep:
    """One generated token on its way through the decoder; `generated` tokens are in the cache since the prefill."""

    def __init__(self, types: LayerTypes, prefill: Prefill, call: dict[str, Any], mrope: bool) -> None:
        self.types, self.decoder, self.prefill, self.entry, self.mrope = types, types.decoder, prefill, prefill.entry, mrope
        self.cache, self.given = call["past_key_values"], call
        self.mask = None if types.several else call.get("attention_mask")
        self.first = prefill.cached(0)
        self.generated = self.cache.get_seq_length() - prefill.cached(types.reported).layout.length
        self.inputs: dict[tuple[int, int, str], dict[str, Any]] = {}
        self.since: torch.Tensor | None = None

    def decoder_inputs(self) -> dict[str, Any]:
        """What to change of the decoder's arguments where the cache is shorter than the prompt: positions and the 2-D mask.

        Positions are set from what the prefill left, so a hand-written loop need not pass any.
        """
        if self.entry.next_position is None:
            return {}
        position = (self.entry.next_position + self.generated)[..., None]
        given = self.given.get("position_ids")
        if self.mrope:
            position = position[-3:].expand(3, -1, -1)
            if given is not None and given.ndim == 3 and len(given) == 4:
                position = torch.cat([given[:1].to(position.device), position])
        else:
            position = position[0]
        changed: dict[str, Any] = {"position_ids": position}
        if self.types.several:
            hidden = self.given.get("inputs_embeds")
            hidden = self.decoder.embed_tokens(self.given["input_ids"]) if hidden is None else hidden
            changed["attention_mask"] = {name: self._mask(self.first, name, i, hidden) for name, i in self.types.since(0).items()}
        elif self.mask is not None or self.first.layout.padded:
            changed["attention_mask"] = self._columns(self.first.layout, position.device)
        return changed

    def _columns(self, layout: Layout, device: torch.device) -> torch.Tensor:
        """Which columns of a layer's cache, and of what was generated since, hold tokens: bool [batch, columns]."""
        prompt = layout.mask(device)
        if self.since is None:
            given = None if self.mask is None else self.mask[:, self.entry.full.length :].bool()
            self.since = prompt.new_ones(len(prompt), self.generated + 1) if given is None else given
        return torch.cat([prompt, self.since.to(device)], dim=1)

    def _step_mask(self, stage: Stage, index: int, hidden: torch.Tensor) -> Any:
        """What layer `index` of a stage may attend to; one query sees every token of its sample."""
        columns = self._columns(stage.layout, hidden.device)
        if self.decoder.config._attn_implementation == "sdpa":
            return columns[:, None, None]
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=columns,
            past_key_values=self.cache,
            layer_idx=index,
        )

    def part_mask(self, layout: Layout, hidden: torch.Tensor) -> torch.Tensor | None:
        """The mask of a layer that reads a part of the prompt, laid out as `layout`, and what was generated since."""
        if not layout.padded:
            return None
        return self.types.as_mask(self._columns(layout, hidden.device)[:, None], hidden.dtype)

    def _mask(self, stage: Stage, layer_type: str, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """The mask of layer `index`, where each type has its own."""
        stage = stage.to(hidden.device)
        first = self.prefill.following(stage).to(hidden.device)[:, None]
        following = first + torch.arange(self.generated + 1, device=hidden.device)
        positions = torch.cat([stage.layout.pad(stage.positions), following], dim=1)
        present = self._columns(stage.layout, hidden.device)
        return self.types.step_mask(layer_type, self.cache, index, positions, present, hidden)

    def layer_inputs(self, index: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What to change of the arguments of layer `index`; made once for layers of one type with the same rows."""
        stage = self.prefill.cached(index)
        if stage.layout is self.first.layout and stage.next_position is None:
            return {}  # what the decoder makes of its own arguments fits
        layer_type = self.types.of(index)
        key = (id(stage.layout), id(stage.next_position), layer_type)
        if key not in self.inputs:
            inputs: dict[str, Any] = {"attention_mask": None, "position_ids": None}
            if self.types.several:
                inputs["attention_mask"] = self._mask(stage, layer_type, index, hidden)
            elif stage.layout.padded and layer_type != LINEAR:
                inputs["attention_mask"] = self._step_mask(stage, index, hidden)
            if stage.next_position is not None:
                position = (stage.next_position + self.generated)[:, None]
                inputs["position_embeddings"] = self.types.rotary(hidden, position.to(hidden.device), layer_type)
            self.inputs[key] = inputs
        return self.inputs[key]
