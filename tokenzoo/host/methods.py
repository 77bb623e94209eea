"""The methods of a run: who acts where, asked in the order in which they are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.prompt import EncodedSource, EntryRecord
from tokenzoo.method.accounting import cache_layers, check_encoder, check_whole, encoder_counts, promised, read_layers
from tokenzoo.method.cached_layer import CachedLayer, CacheRead
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.encoder_layer import EncoderLayer
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import HALVES, ActsAfter, PositionPolicy
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.method.workload import Architecture, Choice


class Methods:
    """Calls the methods, then whoever watches, and applies what the methods return.

    `observers`: a pluggy hook caller with the run-time hooks. `mrope`: the model's positions are always kept.
    """

    def __init__(self, methods: Sequence[TokenReducer], architecture: Architecture, mrope: bool, observers: Any) -> None:
        self.methods, self.architecture, self.mrope, self.observers = list(methods), architecture, mrope, observers
        self.layers = [frozenset(method.layers(architecture.layers)) for method in self.methods]
        #: For each decoder layer in or after which methods act (-1: before layer 0), in order, after which of its halves.
        self.acting = {
            index: tuple(half for half in HALVES if any(half == m.acts_after and index in own for m, own in self._inside))
            for index in sorted(frozenset().union(*self.layers))
        }
        self.in_encoder = [method for method in self.methods if method.acts_in_encoder]
        for method in self.in_encoder:
            check_encoder(method, architecture)
        self.enters = any(method.enters or method.acts_in_encoder for method in self.methods)
        self.reduces_early = any(
            (method.enters and method.implements("early")) or method.acts_in_encoder for method in self.methods
        )
        self.scales_pictures = any(method.picture_scale != 1 for method in self.methods)
        self.caches = [frozenset(cache_layers(method, architecture.layers)) for method in self.methods]
        self.cut = sorted(frozenset().union(*self.caches))
        self.reads = [frozenset(read_layers(method, architecture.layers)) for method in self.methods]
        self.read = sorted(frozenset().union(*self.reads))
        self.entry_policies: list[PositionPolicy] = [method.entry_positions for method in self.methods]

    @property
    def reduce_anything(self) -> bool:
        return self.enters or bool(self.acting or self.cut or self.read)

    @property
    def query_rows(self) -> dict[int, int]:
        """Of how many of the prompt's last rows queries are recorded, in layers whose cache is cut."""
        rows: dict[int, int] = {}
        for method, layers in zip(self.methods, self.caches, strict=True):
            for layer in layers:
                rows[layer] = max(rows.get(layer, 0), method.query_rows())
        return {layer: count for layer, count in rows.items() if count}

    @property
    def read_layers(self) -> list[int]:
        """The layers whose queries are recorded in decoding steps."""
        asked = [method.read_layers(self.architecture.layers) for method, layers in self.reading()]
        return sorted({layer for layers in asked for layer in layers})

    def reading(self) -> list[tuple[TokenReducer, frozenset[int]]]:
        """The methods that choose what decoding steps read, and in which layers."""
        return [(method, layers) for method, layers in zip(self.methods, self.reads, strict=True) if layers]

    @cached_property
    def encoder_layers(self) -> list[int]:
        """The encoder layers to record; raises UnsupportedError where a method reads an encoder that is not there."""
        wanted: set[int] = set()
        for method in self.methods:
            named = method.encoder_layers(self.architecture)
            if named and not self.architecture.encoder_layers:
                raise UnsupportedError(
                    f"'{method.name}' reads the vision encoder, and a bare decoder has none. Apply it to the whole model."
                )
            wanted.update(layer % self.architecture.encoder_layers for layer in named)
        return sorted(wanted)

    @property
    def _inside(self) -> list[tuple[TokenReducer, frozenset[int]]]:
        """The methods, each with the layers in or after which it acts."""
        return list(zip(self.methods, self.layers, strict=True))

    # --- inside the encoder -------------------------------------------------------------------------------------

    @cached_property
    def encoder_halves(self) -> dict[ActsAfter, list[int]]:
        """After which halves of which encoder layers methods act."""
        return {
            half: sorted(
                {
                    layer
                    for method in self.in_encoder
                    if method.encoder_acts_after == half
                    for layer in encoder_counts(method, 0, self.architecture)
                }
            )
            for half in HALVES
        }

    @torch.no_grad()
    def reduce_encoder(self, source: EncodedSource, layer: EncoderLayer) -> list[int]:
        """Reduce one source in an encoder layer; returns how many tokens of each view each method left."""
        layer.architecture, left = self.architecture, []
        for method in self.in_encoder:
            declared = encoder_counts(method, layer.patches, self.architecture)
            if method.encoder_acts_after != layer.after or layer.index not in declared:
                continue
            count = declared[layer.index]
            if count is None or count < layer.tokens:
                layer.apply(method.encoder_pick(layer, count), method.name, count)
            left.append(layer.tokens)
        self.observers.tokenzoo_encoder_layer(layer=layer)
        return left

    @property
    def encoder_method(self) -> int:
        """The number of the method by whose rule positions go on behind the encoder: the last that renumbers, else the last."""
        numbers = [number for number, method in enumerate(self.methods) if method.acts_in_encoder]
        return [*numbers, *(number for number in numbers if self.entry_policies[number] == "renumber")][-1]

    # --- before the LLM -----------------------------------------------------------------------------------------

    def reduce_early(self, source: EncodedSource, tokens: VisualTokens) -> None:
        """Reduce one source before the projector."""
        self._reduce(source, tokens)
        self.observers.tokenzoo_before_projector(tokens=tokens)

    def reduce_entry(self, source: EncodedSource, tokens: VisualTokens) -> None:
        """Reduce one source before the LLM."""
        self._reduce(source, tokens)
        self.observers.tokenzoo_pre_llm(tokens=tokens)

    @torch.no_grad()
    def _reduce(self, source: EncodedSource, tokens: VisualTokens) -> None:
        shape = source.visual.source
        for number, method in enumerate(self.methods):
            if not method.enters or method.early(shape, self.architecture) != tokens.early:
                continue
            check_whole(method, tokens.anchors is None, source.inside is not None and source.inside.anchors is not None)
            views = tuple(tokens.view_counts())
            left, anchors = promised(method, views, shape, self.architecture), None
            if left is None or sum(left) < sum(views):
                tokens.left, tokens.architecture = left, self.architecture
                result = method.reduce(tokens)
                tokens.apply(result, method.name)
                anchors = result if isinstance(result, torch.Tensor) else result.anchors
            source.steps.append(EntryRecord(number, tokens.view, len(tokens.grids), anchors))

    # --- inside the LLM -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def reduce_layer(self, layer: DecoderLayer) -> None:
        """Reduce one sample after a decoder layer, or after its attention."""
        for number, (method, acting) in enumerate(self._inside):
            if layer.index not in acting or method.acts_after != layer.after or not len(layer.visual):
                continue
            count = method.kept(layer.entered, layer.num_layers)[layer.index]
            positions: PositionPolicy = "keep" if self.mrope else method.layer_positions
            if count is not None and count <= 0:
                layer.apply(layer.visual.new_empty(0), method.name, 0, positions)
            elif count is None or count < len(layer.visual):
                layer.apply(method.pick(layer, count), method.name, count, positions)
            if count is None:
                layer.choices.append(Choice(number, layer.index, layer.after, len(layer.visual)))
        if layer.after == "layer":
            self.observers.tokenzoo_after_layer(layer=layer)
        else:
            self.observers.tokenzoo_after_attention(layer=layer)

    # --- the KV cache -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def cut_layer(self, layer: CachedLayer) -> bool:
        """Choose what stays in one sample's cache of a layer; return whether a method counts positions from that."""
        renumbered = False
        for number, (method, acting) in enumerate(zip(self.methods, self.caches, strict=True)):
            if layer.index not in acting or not len(layer.visual):
                continue
            before, count = len(layer.visual), method.cached(layer.entered, layer.num_layers)[layer.index]
            if count is not None and count <= 0:
                layer.apply(layer.visual.new_empty(0), method.name, 0)
            elif count is None or count < before:
                layer.apply(method.pick_cached(layer, count), method.name, count)
            if count is None:
                layer.choices.append(Choice(number, layer.index, "cache", len(layer.visual)))
            if len(layer.visual) < before and method.cache_positions == "renumber":
                renumbered = True
        self.observers.tokenzoo_after_prefill(layer=layer)
        return renumbered and not self.mrope

    @torch.no_grad()
    def read_layer(self, step: CacheRead) -> None:
        """Choose what one sample's new token reads of a layer's cache."""
        for method, acting in self.reading():
            if step.index not in acting or not len(step.visual):
                continue
            count = method.read(step.entered, step.num_layers)[step.index]
            if count is not None and count <= 0:
                step.apply(step.visual.new_empty(0), method.name, 0)
            elif count is None or count < len(step.visual):
                step.apply(method.pick_read(step, count), method.name, count)
        self.observers.tokenzoo_decoding_step(step=step)
