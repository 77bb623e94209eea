"""What the decoder knows of one sample after one layer: `LayerSignals` from the layer's own projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.family import Family, Module
from tokenzoo.host.masks import seen
from tokenzoo.host.placement import beside
from tokenzoo.method.decoder_layer import Places

if TYPE_CHECKING:
    from tokenzoo.host.prefill import Prefill
    from tokenzoo.host.stages import LayerReduction, Stage


QUERY, KEY = 0, 1


def turned(family: Family, layer: Module, which: int, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """A layer's projected q or k [rows, width] as heads, with their norm and the rotary embedding: [heads, rows, head dim]."""
    heads = family.query_heads(layer, states) if which == QUERY else states.unflatten(-1, (-1, layer.self_attn.head_dim))
    norm = family.head_norms(layer)[which]
    heads = (heads if norm is None else norm(heads)).transpose(0, 1)
    return family.rotate(layer, heads, cos, sin)


class LayerInSample:
    """The signals of sample `sample` of a batch; rows are those of the layer, padding left out."""

    def __init__(self, around: LayerReduction, prefill: Prefill, stage: Stage, sample: int) -> None:
        self.around, self.prefill, self.stage, self.sample = around, prefill, stage, sample
        following = around.decoder.layers[max(around.index, 0) + 1 :][:1]  # asked where this layer has no attention
        attending = [layer for layer in (around.layer, *following) if hasattr(layer, "self_attn")]
        self.scaling: float = attending[0].self_attn.scaling if attending else 1.0

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        return self._turned(self.around.index, QUERY, self._projected("query")[rows], rows)

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        states = self._projected("key")
        return self._turned(self.around.index, KEY, states if rows is None else states[rows], rows)

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._next(QUERY, states, rows)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return self._next(KEY, states, rows)

    def embeddings(self, rows: torch.Tensor | None) -> torch.Tensor:
        assert self.prefill.embeddings is not None
        present = self.stage.rows[self.sample]
        entered = self.prefill.entry.layout.take(self.prefill.embeddings, self.sample)
        return entered.to(present.device)[present if rows is None else present[rows]]

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        norm = self.around.decoder.norm
        return norm(beside(states, norm)).to(states.device)

    def positions(self, rows: torch.Tensor | None) -> torch.Tensor:
        positions = self.stage.positions[self.sample]
        return positions if rows is None else positions[..., rows]

    def frequencies(self) -> torch.Tensor:
        types = self.around.types
        frequencies = self.around.family.frequencies(self.around.decoder, types.of(self.around.index))
        if not isinstance(frequencies, torch.Tensor):
            raise UnsupportedError("This decoder's rotary embedding has no fixed frequencies.")
        still = self.around.layer.self_attn.head_dim // 2 - len(frequencies)  # channels that it does not turn
        return torch.nn.functional.pad(frequencies, (0, still))

    def _projections(self, index: int) -> tuple[Module, Module] | None:
        return self.around.family.decoder_projections(self.around.decoder.layers[index])

    def places(self) -> Places:
        rows = self.stage.rows[self.sample]
        found = self.prefill.places(self.sample)
        return found.of(rows.to(found.source.device)).to(rows.device)

    def _projected(self, name: str) -> torch.Tensor:
        if self.around.index < 0:
            raise UnsupportedError("Before layer 0 no layer has queries, keys or attention: read them after its attention.")
        if name not in self.around.projected:
            raise no_attention(self.around.index)
        return self.stage.layout.take(self.around.projected[name], self.sample)

    def visible(self, rows: torch.Tensor, columns: torch.Tensor | None, following: bool) -> torch.Tensor | None:
        types, stage = self.around.types, self.stage
        if not types.several:
            return None
        layer_type = types.of(self.around.index + following)
        if columns is None:
            columns = torch.arange(len(stage.rows[self.sample]), device=rows.device)
        blocks = None if stage.blocks is None else types.blocks(layer_type, stage.blocks[self.sample])
        return seen(rows, columns, stage.positions[self.sample], types.window(layer_type), blocks, None)

    def _next(self, which: int, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        index = self.around.index + 1
        if index == len(self.around.decoder.layers):
            raise UnsupportedError(f"Layer {index - 1} is the last one: no next layer has attention.")
        following = self.around.decoder.layers[index]
        projections = self._projections(index)
        if projections is None:
            raise no_attention(index)
        projection = projections[which]
        there = beside(states, projection)  # the next layer may lie on another device
        return self._turned(index, which, projection(following.input_layernorm(there)), rows).to(states.device)

    def _turned(self, index: int, which: int, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """States [rows, width] as heads of layer `index`, with their norm and the rotary embedding: [heads, rows, head dim]."""
        layer = self.around.decoder.layers[index]
        cos, sin = (angles.to(states.device) for angles in self._angles(index, states))
        if rows is not None:
            cos, sin = cos[rows.to(cos.device)], sin[rows.to(sin.device)]
        return turned(self.around.family, layer, which, states, cos, sin)

    def _angles(self, index: int, states: torch.Tensor) -> list[torch.Tensor]:
        """cos and sin [rows, head dim] for layer `index`: this one, or the next one, which may be of another type."""
        types = self.around.types
        positions = self.stage.positions[self.sample]
        if not types.turn_alike(index, max(self.around.index, 0)):
            return [angles[0] for angles in types.rotary(states, positions[None].to(states.device), types.of(index))]
        given = (angles.to(positions.device) for angles in self.around.call["position_embeddings"])
        return [self.stage.layout.take(angles, self.sample) for angles in given]


def no_attention(index: int) -> UnsupportedError:
    """What a method is told that reads the attention of a layer without."""
    return UnsupportedError(
        f"Decoder layer {index} has no attention map: it keeps a state in place of keys, or reads an earlier layer's keys. "
        "Let the method act at another layer."
    )
