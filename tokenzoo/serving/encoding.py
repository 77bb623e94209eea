"""Pictures reduced as they are encoded: vLLM's features become the events that the host shows to a method in Hugging Face.

The host's own code does it. One picture is a prompt of its own there, without text; what is left of it is what vLLM puts into
its encoder cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.batch import Layout
from tokenzoo.host.encoder import EncoderRecord
from tokenzoo.host.entry import reduce_entry
from tokenzoo.host.family import Module
from tokenzoo.host.prompt import EncodedSource, PlacedSource, Prompt, place
from tokenzoo.host.vision import VisionWatch
from tokenzoo.method.validation import Checks
from tokenzoo.serving.served import Served

#: vLLM's way to encode what it is given: one tensor [tokens, hidden] for each picture.
Encode = Callable[..., Sequence[torch.Tensor]]


class TowerWatch(VisionWatch):
    """The host's watch on another implementation's modules: layers whose q, k and v are one projection, and the projector."""

    def attach_to(self, layers: Sequence[Module], projector: Module) -> None:
        """Begin to watch, for as long as the model lives."""
        if self.reduce is not None:
            projector.register_forward_pre_hook(self._before_projector, with_kwargs=True)
            projector.register_forward_hook(self._after_projector)
        for index in self.encoder_layers:
            layers[index].register_forward_pre_hook(self._arguments(index), with_kwargs=True)
            layers[index].register_forward_hook(self._output(index))
            layers[index].self_attn.qkv_proj.register_forward_hook(self._fused(index))

    def encode(self, kind: str, encode: Encode, call: Mapping[str, Any]) -> tuple[Sequence[torch.Tensor], list[EncodedSource]]:
        """What the encoder makes of a call, and what the watch saw."""

        def original(**kwargs: Any) -> Sequence[torch.Tensor]:
            return encode(**kwargs)

        made = self._encode(kind, original, **call)
        return made, self.encoded.pop(kind)

    def forget(self) -> None:
        """Let go of what was recorded."""
        self.record = EncoderRecord()

    def _fused(self, index: int) -> Callable[..., None]:
        def record(module: Module, args: Any, output: Any) -> None:
            fused = output[0] if isinstance(output, tuple) else output
            query, key, _ = fused.chunk(3, dim=-1)
            self.record.layer(index).projections.extend((query, key))

        return record


class Encoding:
    """Stands between vLLM's model and its encoder.

    `log`: where it is a list, each picture's `fingerprint` and `assignment` are added to it.
    """

    def __init__(self, served: Served) -> None:
        self.served, methods = served, served.methods
        reduce = methods.reduce_early if methods.reduces_early else None
        self.watch = TowerWatch(served.family, served.model, served.encoder_layers, reduce)
        self.log: list[tuple[str, list[int] | None]] | None = None

    def attach(self, layers: Sequence[Module], projector: Module) -> None:
        """Watch the encoder, where the method reads it or acts before the projector."""
        self.watch.attach_to(layers, projector)

    def __call__(self, encode: Encode, call: Mapping[str, Any]) -> list[Reduced]:
        """Encode a call of pictures, or one of videos, and let the methods reduce each."""
        kind = kind_of(call)
        reduced = []
        for one in _calls(call):
            made, sources = self.watch.encode(kind, encode, one)
            checks = Checks()
            left = [self._reduce(kind, source, tokens, checks) for source, tokens in zip(sources, made, strict=True)]
            checks.settle()
            reduced += left
            if self.log is not None:
                pictures = map(fingerprint, pixels_of(one, kind))
                self.log += zip(pictures, [assignment(each.source) for each in left], strict=True)
        self.watch.forget()
        return reduced

    def _reduce(self, kind: str, encoded: EncodedSource, embeddings: torch.Tensor, checks: Checks) -> Reduced:
        count = len(embeddings)
        prompt = Prompt(place([encoded], torch.ones(1, count, dtype=torch.bool), kind))
        prompt.enter(None, 1, count, embeddings.device)
        methods = self.served.methods
        entry, rows = reduce_entry(
            prompt, Layout(count, [None]), embeddings[None], methods.reduce_entry, methods.entry_policies, None, _no_words, checks
        )
        (source,) = prompt.sources
        return Reduced(rows[0] if rows else embeddings, entry.samples[0].columns, source)


class Reduced:
    """What is left of one picture: its tokens [left, hidden], and for each which of the unreduced tokens it stands for."""

    def __init__(self, tokens: torch.Tensor, anchors: torch.Tensor, source: PlacedSource) -> None:
        self.tokens, self.anchors, self.source = tokens, anchors, source


def assignment(source: PlacedSource) -> list[int] | None:
    """As `SourceTrace.assignment`: which token each one became, -1 where it was dropped; None where nothing was reduced."""
    if source.tokens is None:
        return None
    assert source.tokens.assignment is not None
    return source.tokens.assignment.tolist()


def pixels_of(call: Mapping[str, Any], kind: str) -> list[torch.Tensor]:
    """The pixels of each image or video of a call."""
    pixels, grids = call["pixel_values" if kind == "image" else "pixel_values_videos"], call.get(f"{kind}_grid_thw")
    return list(pixels) if grids is None else list(pixels.split(grids.prod(-1).tolist()))


def fingerprint(pixels: torch.Tensor) -> str:
    """Tells pictures apart by what a processor made of them."""
    return sha256(pixels.float().contiguous().cpu().numpy().tobytes()).hexdigest()


def kind_of(call: Mapping[str, Any]) -> str:
    """ "image" or "video": what a call of the encoder holds."""
    return "video" if any(name in call for name in ("pixel_values_videos", "video_grid_thw", "video_embeds")) else "image"


def _calls(call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The call as it is, or where pictures differ in shape and come as lists, one call for each."""
    listed = [len(value) for value in call.values() if isinstance(value, list) and isinstance(value[0], torch.Tensor)]
    if not listed:
        return [dict(call)]
    return [{name: value[index][None] for name, value in call.items()} for index in range(listed[0])]


def _no_words(words: list[str]) -> torch.Tensor:
    raise UnsupportedError("A picture is encoded without its prompt, so no words are known.")
