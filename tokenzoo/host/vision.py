"""Around the encoder: learn which images and videos a call holds, and let methods reduce them before the projector.

`generate` encodes pictures before the model's first forward, so the model's own get_image_features and
get_video_features are watched (an attribute of this one instance, for the time of the block). The model counts
placeholders against image features. Where a method reduced them, the projector runs on what is left. Its caller gets
zeros of the original shape; the real tokens are inserted later, when the decoder's input is built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from tokenzoo.host.adapter import before_projector, fault
from tokenzoo.host.encoder import EncoderRecord, RecordedEncoder
from tokenzoo.host.family import Family, Module
from tokenzoo.host.prompt import KINDS, EncodedSource
from tokenzoo.method.visual_tokens import VisualTokens

#: Lets the methods that act before the projector reduce one source; notes in it what each of them left.
Reduce = Callable[[EncodedSource, VisualTokens], None]


class VisionWatch:
    """The encoded sources of the call under way, by kind; with `reduce`, reduced before the projector."""

    def __init__(self, family: Family, model: Module, encoder_layers: Sequence[int], reduce: Reduce | None) -> None:
        self.family, self.model, self.reduce, self.encoder_layers = family, model, reduce, encoder_layers
        self.encoded: dict[str, list[EncodedSource]] = {}
        self.current: list[EncodedSource] | None = None
        self.record = EncoderRecord()
        self.reduced_input: torch.Tensor | None = None
        self.left: torch.Tensor | None = None
        self.beside: list[torch.Tensor] = []

    def attach(self, keep: Callable[[Callable[[], None]], object]) -> None:
        """Begin to watch; `keep` is given a function that ends each watch."""
        root = self.family.root(self.model)
        for kind in KINDS:
            name = f"get_{kind}_features"
            if hasattr(root, name):
                keep(watch(root, name, partial(self._encode, kind)))
        if self.reduce is not None:
            projector = self.family.projector(self.model)
            keep(projector.register_forward_pre_hook(self._before_projector).remove)
            keep(projector.register_forward_hook(self._after_projector).remove)
        for layers, index in product(self.family.encoder_stacks(self.model) if self.encoder_layers else (), self.encoder_layers):
            keep(layers[index].register_forward_pre_hook(self._arguments(index), with_kwargs=True).remove)
            keep(layers[index].register_forward_hook(self._output(index)).remove)
            for module in self.family.encoder_projections(layers[index]):
                keep(module.register_forward_hook(self._projection(index)).remove)
        head = self.family.pooling_head(self.model)
        if head is not None and self.encoder_layers:
            keep(head.attention.register_forward_hook(self._head_attention).remove)
            keep(head.register_forward_hook(self._head_output).remove)

    def _encode(self, kind: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One call of get_image_features or get_video_features; a model may encode videos by calling the former itself."""
        if self.current is not None:
            return original(*args, **kwargs)
        call = inspect.signature(original).bind(*args, **kwargs).arguments
        visuals = self.family.sources(self.model, {**call, **call.get("kwargs", {})}, kind)
        self.record = EncoderRecord()
        self.current = self.encoded[kind] = [
            EncodedSource(
                visual, RecordedEncoder(self.family, self.model, self.record, visuals, number), self.family.has_cls(self.model)
            )
            for number, visual in enumerate(visuals)
        ]
        try:
            output = original(*args, **kwargs)
        finally:
            self.current = None
        self._check_count(kind, sum(len(visual.view_of_token) for visual in visuals), output)
        return output

    def _check_count(self, kind: str, told: int, output: Any) -> None:
        """Raise AdapterError where the adapter told another number of tokens than the model made."""
        made = getattr(output, "pooler_output", output)
        parts = made if isinstance(made, (list, tuple)) else [made]
        if not all(isinstance(part, torch.Tensor) for part in parts):
            return
        count = sum(part.numel() // part.shape[-1] for part in parts)
        if count != told:
            raise fault(self.family, "sources", f"tells of {told} tokens where get_{kind}_features makes {count}")

    # --- recording ----------------------------------------------------------------------------------------------

    def _projection(self, index: int) -> Callable[..., None]:
        def record(module: Module, args: Any, output: torch.Tensor) -> None:
            self.record.layer(index).projections.append(output)

        return record

    def _arguments(self, index: int) -> Callable[..., None]:
        def record(module: Module, args: Any, kwargs: dict[str, Any]) -> None:
            layer = self.record.layer(index)
            layer.projections.clear()
            layer.arguments = kwargs

        return record

    def _output(self, index: int) -> Callable[..., None]:
        def record(module: Module, args: Any, output: Any) -> None:
            self.record.layer(index).output = output[0] if isinstance(output, tuple) else output

        return record

    def _head_attention(self, module: Module, args: Any, output: Any) -> None:
        self.record.head_attention = output[1]

    def _head_output(self, module: Module, args: Any, output: torch.Tensor) -> None:
        self.record.head_output = output

    # --- the projector ------------------------------------------------------------------------------------------

    def _before_projector(self, module: Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        """Let the methods reduce each source; hand what is left to the projector."""
        if not self.current:
            return None
        assert self.reduce is not None
        visuals = [source.visual for source in self.current]
        events, self.beside = [], []
        for source, features in zip(self.current, self.family.split_features(self.model, args[0], visuals), strict=True):
            through = source.visual.through(features.device)
            self.beside.append(features[:0] if through is None else features[through[1]])
            features = features if through is None else features[through[0]]
            grids = source.visual.encoder_grids
            sizes = torch.tensor([height * width for height, width in grids])
            tokens = VisualTokens(
                kind=source.visual.kind,
                features=features,
                view=torch.arange(len(grids)).repeat_interleave(sizes).to(features.device),
                grids=grids,
                memory=source.memory,
                early=True,
                has_cls=source.has_cls,
                encoder=source.encoder,
                tiles=source.visual.tiles,
            )
            self.reduce(source, tokens)
            events.append(tokens)
        if all(tokens.anchors is None for tokens in events):
            return None
        for source, tokens in zip(self.current, events, strict=True):
            if tokens.anchors is None and source.visual.one_to_one:  # left alone, beside others that were reduced
                everything = torch.arange(len(tokens.features), device=tokens.features.device)
                tokens.anchors = tokens.assignment = everything
            source.tokens = tokens
        self.reduced_input = args[0]
        self.left = torch.cat([part for tokens, cls in zip(events, self.beside, strict=True) for part in (tokens.features, cls)])
        return (self.family.projector_input(self.model, self.left),)

    def _after_projector(self, module: Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Keep the projected tokens for the decoder's input; return the stand-in."""
        if self.reduced_input is None:
            return None
        unreduced, self.reduced_input = self.reduced_input, None
        assert self.left is not None
        projected = self.family.projector_output(self.model, output, self.left)
        self.left = None
        assert self.current is not None
        counts = [len(source.tokens.features) for source in self.current]  # type: ignore[union-attr]
        pieces = projected.split([count for pair in zip(counts, map(len, self.beside), strict=True) for count in pair])
        parts, beside = list(pieces[::2]), pieces[1::2]
        alone = [source.tokens is not None and source.tokens.anchors is None for source in self.current]
        stand_in = self.family.placeholder_output(self.model, unreduced, output)
        tokens = sum(before_projector(source.visual) for source in self.current)
        if stand_in.numel() != tokens * output.shape[-1]:
            wrong = f"gave {list(stand_in.shape)}, and {tokens} tokens pass the projector where nothing is dropped"
            raise fault(self.family, "placeholder_output", wrong)
        if any(alone):  # tiled and pooled ones go the model's own way, packing included
            stand_in = self.family.with_projected(stand_in.clone(), parts, alone, [source.visual for source in self.current])
        if any(map(len, beside)):  # CLS tokens, which are always kept, go the model's own way too
            stand_in = stand_in.clone()
            flat = stand_in.view(-1, stand_in.shape[-1])
            structural = torch.cat([source.visual.view_of_token for source in self.current]) < 0
            flat[structural.nonzero()[:, 0].to(flat.device)] = torch.cat(beside)
        for source, part, untouched in zip(self.current, parts, alone, strict=True):
            source.tokens, source.projected = (None, None) if untouched else (source.tokens, part)
        return stand_in


def watch(owner: Any, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Let `call(original, *args, **kwargs)` stand for a method of this one instance; return what undoes it."""
    original, own = getattr(owner, name), owner.__dict__.get(name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    owner.__dict__[name] = watched

    def end() -> None:
        if own is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = own

    return end
