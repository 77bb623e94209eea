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
from tokenzoo.host.encoder_reduction import EncoderReduction, visual_views
from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.host.prompt import KINDS, EncodedSource, EntryRecord
from tokenzoo.method.visual_tokens import VisualTokens

#: Lets the methods that act before the projector reduce one source; notes in it what each of them left.
Reduce = Callable[[EncodedSource, VisualTokens], None]


class VisionWatch:
    """The encoded sources of the call under way, by kind; with `reduce`, reduced before the projector.

    `inner`: lets methods reduce them inside the encoder; `inner_method` is the number of the one whose positions hold behind it.
    """

    def __init__(
        self,
        family: Family,
        model: Module,
        encoder_layers: Sequence[int],
        reduce: Reduce | None,
        inner: EncoderReduction | None = None,
        inner_method: int = 0,
    ) -> None:
        self.family, self.model, self.reduce, self.encoder_layers = family, model, reduce, encoder_layers
        self.inner, self.inner_method = inner, inner_method
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
            keep(projector.register_forward_pre_hook(self._before_projector, with_kwargs=True).remove)
            keep(projector.register_forward_hook(self._after_projector).remove)
        if self.inner is not None:
            self.inner.attach(keep)
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
        if self.inner is not None:
            self.record.weighed = self.inner.begin(self.current)
            for source in self.current:
                assert source.encoder is not None
                source.encoder.inside = source.inside
        try:
            output = original(*args, **kwargs)
        finally:
            self.current = None
            if self.inner is not None:
                self.inner.end()
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

    def _before_projector(
        self, module: Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[torch.Tensor], dict[str, Any]] | None:
        """Let the methods reduce each source; hand what is left to the projector."""
        if not self.current:
            return None
        assert self.reduce is not None
        name = next(iter(inspect.signature(module.forward).parameters))
        args, kwargs = args or (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
        visuals = [source.visual for source in self.current]
        events, self.beside = [], []
        for source, (features, beside) in zip(self.current, self._split(args[0], visuals), strict=True):
            self.beside.append(beside)
            tokens = self._tokens(source, features)
            self.reduce(source, tokens)
            events.append(tokens)
        if all(tokens.anchors is None for tokens in events):
            return None
        for source, tokens in zip(self.current, events, strict=True):
            if tokens.anchors is None and source.visual.one_to_one:  # left alone, beside others that were reduced
                everything = torch.arange(len(tokens.features), device=tokens.features.device)
                tokens.anchors = tokens.assignment = everything
            source.tokens = tokens
        self.reduced_input = self._unreduced(args[0], visuals)
        self.left = torch.cat([part for tokens, cls in zip(events, self.beside, strict=True) for part in (tokens.features, cls)])
        return (self.family.projector_input(self.model, self.left),), kwargs

    def _split(self, features: torch.Tensor, visuals: Sequence[VisualSource]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each source's tokens, and the structural ones (CLS) that pass the projector beside them, from its input."""
        assert self.current
        if self._inside:
            views = features.split([len(visual.encoder_grids) for visual in visuals])
            first = [int(visual.source.through > 0) for visual in visuals]
            ends = [cls + source.inside.tokens for cls, source in zip(first, self.current, strict=True) if source.inside]
            return [
                (own[:, cls:end].flatten(0, 1), own[:, :cls].flatten(0, 1))
                for own, cls, end in zip(views, first, ends, strict=True)
            ]
        pieces = []
        for part, visual in zip(self.family.split_features(self.model, features, visuals), visuals, strict=True):
            through = visual.through(part.device)
            pieces.append((part, part[:0]) if through is None else (part[through[0]], part[through[1]]))
        return pieces

    @property
    def _inside(self) -> bool:
        """Whether tokens of any source of the call left inside the encoder."""
        return any(source.inside is not None and source.inside.anchors is not None for source in self.current or ())

    def _tokens(self, source: EncodedSource, features: torch.Tensor) -> VisualTokens:
        """One source's tokens before the projector, the encoder's reductions behind them."""
        grids, inside = source.visual.encoder_grids, source.inside
        counts = [height * width for height, width in grids]
        tokens = VisualTokens(
            kind=source.visual.kind,
            features=features,
            view=torch.arange(len(grids)).repeat_interleave(torch.tensor(counts)).to(features.device),
            grids=grids,
            memory=source.memory,
            early=True,
            has_cls=source.has_cls,
            encoder=source.encoder,
            tiles=source.visual.tiles,
        )
        if inside is None or inside.anchors is None or inside.assignment is None:
            return tokens
        number = torch.arange(inside.views, device=features.device)[:, None]
        goes = inside.assignment.to(features.device)
        tokens.anchors = (inside.anchors.to(features.device) + number * inside.patches).flatten()
        tokens.assignment = torch.where(goes < 0, -1, goes + number * inside.tokens).flatten()
        tokens.view, tokens.counts = tokens.view[tokens.anchors], [inside.tokens] * inside.views
        tokens.checks = inside.checks
        source.inside_step = EntryRecord(self.inner_method, tokens.view, len(grids), tokens.anchors)
        return tokens

    def _unreduced(self, features: torch.Tensor, visuals: Sequence[VisualSource]) -> torch.Tensor:
        """The projector's input, or a tensor of the shape that it would have if nothing had left inside the encoder."""
        if not self._inside:
            return features
        (rows,) = {int(visual.source.through > 0) + visual_views(visual)[1] for visual in visuals}
        return features.new_zeros(1).expand(len(features), rows, features.shape[-1])

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
