"""What the vision encoder knows of a picture, taken from the layers that were recorded while it ran."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.encoder_reduction import Inside, KeyWeights
from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.method.visual_tokens import Queries


@dataclass
class LayerRecord:
    """One encoder layer of one call: outputs of its q and k projections, its own output, the arguments it was given, and how
    keys were weighed where tokens left before it."""

    projections: list[torch.Tensor] = field(default_factory=list)
    output: torch.Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: KeyWeights | None = None


@dataclass
class EncoderRecord:
    """The recorded layers of one call of the encoder, for all its images or videos; `head`: what SigLIP's pooling head gave."""

    layers: dict[int, LayerRecord] = field(default_factory=dict)
    head_attention: torch.Tensor | None = None
    head_output: torch.Tensor | None = None
    weighed: dict[int, KeyWeights] = field(default_factory=dict)

    def layer(self, index: int) -> LayerRecord:
        return self.layers.setdefault(index, LayerRecord())


class RecordedEncoder:
    """`EncoderSignals` of one source: number `number` of `sources`, which went through the encoder together.

    `inside`: what became of its patches inside the encoder. Where some left, each patch has the values of the token it went into.
    """

    def __init__(self, family: Family, model: Module, record: EncoderRecord, sources: list[VisualSource], number: int) -> None:
        self.family, self.model, self.record, self.sources, self.number = family, model, record, sources, number
        self.cls = int(family.has_cls(model))
        self.inside: Inside | None = None

    def query_key(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = self.family.split_recorded(self.model, self._layer(layer).projections, self.sources)[self.number]
        return self._whole(query, layer), self._whole(key, layer)

    def attention(self, layer: int, queries: Queries, early: bool) -> torch.Tensor:
        if queries == "cls" and not self.cls:
            raise UnsupportedError(f"The vision encoder of {type(self.model).__name__} has no CLS token; use queries='all'.")
        record = self._layer(layer)
        record.weights = self.record.weighed.get(self._index(layer))
        weights = self.family.encoder_attention(self.model, record, self.sources, self.number, queries)  # [views, tokens, heads]
        return self._placed(self._whole(weights, layer, cls=0), early).T

    def keys(self, layer: int, early: bool) -> torch.Tensor:
        key = self.query_key(layer)[1][:, self.cls :]
        heads = self.family.encoder_heads(self.model)
        return self._placed(key.unflatten(-1, (heads, -1)).mean(2), early)

    def features(self, layer: int, early: bool) -> torch.Tensor:
        states = self._whole(self._output(layer), layer, behind=True)
        return self._placed(states[:, self.cls :], early)

    def cls_features(self, layer: int) -> torch.Tensor:
        if not self.cls:
            raise UnsupportedError(f"The vision encoder of {type(self.model).__name__} has no CLS token.")
        return self._output(layer)[:, 0]

    def pooling_head(self, early: bool) -> tuple[torch.Tensor, torch.Tensor]:
        attention, vectors = self.record.head_attention, self.record.head_output
        if attention is None or vectors is None:
            raise UnsupportedError(
                f"The vision encoder of {type(self.model).__name__} has no pooling head; SigLIP's has, with vision_use_head=True."
            )
        start, stop = self._views()
        weights = attention[start:stop].float().mean(1) if attention.ndim == 3 else attention[start:stop].float()
        weights = self._whole(weights[..., None], -1, behind=True, cls=0)
        return self._placed(weights, early)[:, 0], vectors[start:stop]

    def _views(self) -> tuple[int, int]:
        """Which of the call's views are this source's."""
        counts = [len(source.encoder_grids) for source in self.sources]
        return sum(counts[: self.number]), sum(counts[: self.number + 1])

    def _index(self, layer: int) -> int:
        return layer if layer >= 0 else len(self.family.encoder_layers(self.model)) + layer

    def _whole(self, values: torch.Tensor, layer: int, behind: bool = False, cls: int | None = None) -> torch.Tensor:
        """Values [views, cls + tokens, ...] of a layer's rows as values of all patches."""
        if self.inside is None:
            return values
        return self.inside.whole(values, self._index(layer), behind, self.cls if cls is None else cls)

    def _layer(self, layer: int) -> LayerRecord:
        index = self._index(layer)
        if index not in self.record.layers:
            raise RuntimeError(
                f"Encoder layer {index} was not recorded: name it in encoder_layers() (recorded: {sorted(self.record.layers)})."
            )
        return self.record.layers[index]

    def _output(self, layer: int) -> torch.Tensor:
        """A layer's output of this source, [views, (1 +) tokens, width]."""
        output = self._layer(layer).output
        assert output is not None
        return self.family.split_outputs(self.model, output, self.sources)[self.number]

    def _placed(self, values: torch.Tensor, early: bool) -> torch.Tensor:
        """Values [views, tokens, channels] of the encoder's patches in the order of the tokens that the method sees."""
        source = self.sources[self.number]
        return values.flatten(0, 1) if early or source.pack is None else source.pack(values)
