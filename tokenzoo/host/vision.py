"""Around the encoder: learn which images and videos a call holds, and let methods reduce them before the projector.

`generate` encodes pictures before the model's first forward, so the model's own get_image_features and
get_video_features are watched (an attribute of this one instance, for the time of the block). The model counts
placeholders against image features; where a method reduced them, the projector runs on what is left and its caller
gets a stand-in of the full shape (zeros, but for tiled or pooled sources that no method reduced), while the true tokens
wait for the decoder's input to be built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenzoo.host.family import Family, Module
from tokenzoo.host.prompt import KINDS, EncodedSource
from tokenzoo.method.events import VisualTokens


class VisionWatch:
    """The encoded sources of the call under way, by kind; with `reduce`, reduced before the projector."""

    def __init__(
        self,
        family: Family,
        model: Module,
        encoder_layers: Sequence[int],
        reduce: Callable[[VisualTokens], None] | None,
    ) -> None:
        self.family, self.model, self.reduce, self.encoder_layers = family, model, reduce, encoder_layers
        self.encoded: dict[str, list[EncodedSource]] = {}
        self.current: list[EncodedSource] = []
        self.recorded: dict[int, list[torch.Tensor]] = {}
        self.reduced_input: torch.Tensor | None = None

    def attach(self, keep: Callable[[Callable[[], None]], object]) -> None:
        """Begin to watch; `keep` is given a function that ends each watch."""
        root = self.family.root(self.model)
        for kind in KINDS:
            name = f"get_{kind}_features"
            if hasattr(root, name):
                keep(self._watch(root, name, kind))
        if self.reduce is None:
            return
        projector = self.family.projector(self.model)
        keep(projector.register_forward_pre_hook(self._before_projector).remove)
        keep(projector.register_forward_hook(self._after_projector).remove)
        layers = self.family.encoder_layers(self.model)
        for index in self.encoder_layers:
            for position, module in enumerate(self.family.encoder_projections(layers[index])):
                keep(module.register_forward_hook(self._recorder(index, position)).remove)

    def _watch(self, root: Any, name: str, kind: str) -> Callable[[], None]:
        original, own = getattr(root, name), root.__dict__.get(name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(original).bind(*args, **kwargs).arguments
            visuals = self.family.sources(self.model, call, kind)
            self.current = self.encoded[kind] = [EncodedSource(visual) for visual in visuals]
            try:
                return original(*args, **kwargs)
            finally:
                self.current = []
                self.recorded.clear()

        root.__dict__[name] = watched

        def end() -> None:
            if own is None:
                del root.__dict__[name]
            else:
                root.__dict__[name] = own

        return end

    def _recorder(self, index: int, position: int) -> Callable[..., None]:
        def record(module: Module, args: Any, output: torch.Tensor) -> None:
            self.recorded.setdefault(index, [])[position:] = [output]

        return record

    def _before_projector(self, module: Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        """Let the methods reduce each source; hand what is left to the projector."""
        if not self.current:
            return None
        assert self.reduce is not None
        visuals = [source.visual for source in self.current]
        parts = self.family.split_features(self.model, args[0], visuals)
        recorded = {index: self.family.split_recorded(self.model, outputs, visuals) for index, outputs in self.recorded.items()}
        events = []
        for number, (source, features) in enumerate(zip(self.current, parts, strict=True)):
            grids = source.visual.encoder_grids
            sizes = torch.tensor([height * width for height, width in grids])
            tokens = VisualTokens(
                kind=source.visual.kind,
                features=features,
                view=torch.arange(len(grids)).repeat_interleave(sizes).to(features.device),
                grids=grids,
                memory=source.memory,
                recorded_layers={index: pairs[number] for index, pairs in recorded.items()},
                encoder_heads=self.family.encoder_heads(self.model),
                has_cls=self.family.has_cls(self.model),
            )
            self.reduce(tokens)
            events.append(tokens)
        if all(tokens.anchors is None for tokens in events):
            return None
        for source, tokens in zip(self.current, events, strict=True):
            if tokens.anchors is None and source.visual.one_to_one:  # left alone, beside others that were reduced
                tokens.reduce(torch.arange(len(tokens.features), device=tokens.features.device), "host")
            tokens.recorded_layers = {}
            source.tokens = tokens
        self.reduced_input = args[0]
        left = torch.cat([tokens.features for tokens in events])
        return (self.family.projector_input(self.model, left),)

    def _after_projector(self, module: Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Keep the projected tokens for the decoder's input; return the stand-in."""
        if self.reduced_input is None:
            return None
        unreduced, self.reduced_input = self.reduced_input, None
        projected = self.family.projector_output(output)
        counts = [len(source.tokens.features) for source in self.current]  # type: ignore[union-attr]
        parts = list(projected.split(counts))
        alone = [source.tokens is not None and source.tokens.anchors is None for source in self.current]
        stand_in = self.family.placeholder_output(self.model, unreduced, output)
        if any(alone):  # tiled and pooled ones go the model's own way, packing included
            stand_in = self.family.with_projected(stand_in.clone(), parts, alone, [source.visual for source in self.current])
        for source, part, untouched in zip(self.current, parts, alone, strict=True):
            source.tokens, source.projected = (None, None) if untouched else (source.tokens, part)
        return stand_in
