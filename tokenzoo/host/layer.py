"""What the decoder knows of one sample after one layer: `LayerSignals` from the layer's own projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tokenzoo.errors import UnsupportedError

if TYPE_CHECKING:
    from tokenzoo.host.prefill import Prefill
    from tokenzoo.host.stages import LayerReduction, Stage


class LayerInSample:
    """The signals of sample `sample` of a batch; rows are those of the layer, padding left out."""

    def __init__(self, around: LayerReduction, prefill: Prefill, stage: Stage, sample: int) -> None:
        self.around, self.prefill, self.stage, self.sample = around, prefill, stage, sample
        self.scaling: float = around.layer.self_attn.scaling

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        return self._turned(self.around.layer, self._projected("query")[rows], rows)

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        states = self._projected("key")
        return self._turned(self.around.layer, states if rows is None else states[rows], rows)

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._next(0, states, rows)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return self._next(1, states, rows)

    def embeddings(self, rows: torch.Tensor | None) -> torch.Tensor:
        assert self.prefill.embeddings is not None
        entered, present = self.prefill.entry.layout.take(self.prefill.embeddings, self.sample), self.stage.rows[self.sample]
        return entered[present if rows is None else present[rows]]

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        norm = self.around.decoder.norm
        return norm(states.to(norm.weight.device)).to(states.device)

    def positions(self, rows: torch.Tensor | None) -> torch.Tensor:
        positions = self.stage.positions[self.sample]
        return positions if rows is None else positions[..., rows]

    def frequencies(self) -> torch.Tensor:
        frequencies = getattr(self.around.decoder.rotary_emb, "inv_freq", None)
        if not isinstance(frequencies, torch.Tensor):
            raise UnsupportedError("This decoder's rotary embedding has no fixed frequencies.")
        return frequencies

    def _projected(self, name: str) -> torch.Tensor:
        return self.stage.layout.take(self.around.projected[name], self.sample)

    def _next(self, which: int, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        following = self.around.decoder.layers[self.around.index + 1]
        projection = self.around.family.decoder_projections(following)[which]
        there = states.to(projection.weight.device)  # the next layer may lie on another device
        return self._turned(following, projection(following.input_layernorm(there)).to(states.device), rows)

    def _turned(self, layer: Any, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """States [rows, width] as heads, with the rotary embedding: [heads, rows, head dim]."""
        angles = (angle.to(states.device) for angle in self.around.call["position_embeddings"])
        cos, sin = (self.stage.layout.take(angle, self.sample) for angle in angles)
        if rows is not None:
            cos, sin = cos[rows], sin[rows]
        heads = states.unflatten(-1, (-1, self.around.layer.self_attn.head_dim)).transpose(0, 1)
        return self.around.family.rotate(layer, heads, cos, sin)
