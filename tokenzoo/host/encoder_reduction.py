"""Tokens that leave inside the encoder: hooks on its layers, and what became of each source's patches.

A layer of the families served ends in `hidden + mlp(norm(hidden))`; what leaves behind its attention does so by `MlpHalf`.
Later layers weigh keys by an additive mask. Nothing of the encoder's own code is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.host.mlp_half import MlpHalf
from tokenzoo.method.encoder_layer import EncoderLayer, follow, take
from tokenzoo.method.reduction import HALVES, ActsAfter
from tokenzoo.method.validation import Checks
from tokenzoo.method.workload import EncoderCut

if TYPE_CHECKING:
    from tokenzoo.host.prompt import EncodedSource

#: Lets the methods that act inside the encoder reduce one source; returns how many tokens of each view each of them left.
Reduce = Callable[["EncodedSource", EncoderLayer], list[int]]


@dataclass
class Inside:
    """One image or video inside an encoder of `layers` layers: `views` views of `patches` patches each.

    `anchors` [views, tokens]: the patch that each token stands for; `assignment` [views, patches]: the token each patch is part
    of, -1 where it was dropped; `sizes` [views, tokens]. `cuts` are as in `EncoderTrace`. `history`: layer, half and assignment
    behind each reduction; `left_in` [views, patches] as in `EncoderTrace`.
    """

    layers: int
    views: int
    patches: int
    sizes: torch.Tensor
    anchors: torch.Tensor | None = None
    assignment: torch.Tensor | None = None
    left_in: torch.Tensor | None = None
    cuts: list[EncoderCut] = field(default_factory=list)
    history: list[tuple[int, ActsAfter, torch.Tensor]] = field(default_factory=list)
    checks: Checks = field(default_factory=Checks)

    @property
    def tokens(self) -> int:
        """How many tokens each view has now."""
        return self.sizes.shape[1]

    def update(self, layer: EncoderLayer) -> None:
        """Take over what the methods made of it after one half of a layer."""
        if layer.anchors is None or layer.assignment is None:
            return
        device = layer.anchors.device
        before = None if self.anchors is None else self.anchors.to(device)
        goes = None if self.assignment is None else self.assignment.to(device)
        self.anchors, self.assignment = follow(before, goes, layer.anchors, layer.assignment)
        self.sizes = layer.sizes
        known = torch.full_like(self.assignment, -1) if self.left_in is None else self.left_in.to(device)
        stay = torch.zeros_like(known).scatter(1, self.anchors, torch.ones_like(self.anchors)) > 0
        self.left_in = torch.where(stay | (known >= 0), known, layer.index)
        self.history.append((layer.index, layer.after, self.assignment))

    def at(self, layer: int, behind: bool) -> torch.Tensor | None:
        """The assignment of patches to the rows that enter a layer, or that stand `behind` it; None where nothing has left."""
        found = None
        for index, _, assignment in self.history:
            if index < layer or (behind and index == layer):
                found = assignment
        return found

    def whole(self, values: torch.Tensor, layer: int, behind: bool, cls: int) -> torch.Tensor:
        """Values [views, cls + tokens, ...] of a layer's rows as values of all patches: each has those of the token it went into,
        a dropped one zeros."""
        assignment = self.at(layer, behind)
        if assignment is None:
            return values
        assignment = assignment.to(values.device)
        view = torch.arange(len(values), device=values.device)[:, None]
        patches = values[view, cls + assignment.clamp(min=0)]
        stay = (assignment >= 0).view(*assignment.shape, *[1] * (values.ndim - 2))
        return torch.cat([values[:, :cls], torch.where(stay, patches, 0.0)], dim=1)


@dataclass
class KeyWeights:
    """What later layers add to the logits of keys, [views, 1, 1, rows], and how many rows of each source are its own."""

    bias: torch.Tensor
    rows: list[int]


class EncoderReduction:
    """The hooks that let methods reduce the sources of a call inside the encoder.

    `layers`: after which halves of which layers methods act. `proportional`: whether keys are weighed by their tokens' sizes.
    """

    def __init__(
        self, family: Family, model: Module, layers: dict[ActsAfter, list[int]], proportional: bool, reduce: Reduce
    ) -> None:
        self.family, self.model, self.layers, self.proportional, self.reduce = family, model, layers, proportional, reduce
        self.cls = int(family.has_cls(model))
        self.sources: Sequence[EncodedSource] = ()
        self.keys: torch.Tensor | None = None
        self.weights: KeyWeights | None = None
        self.weighed: dict[int, KeyWeights] = {}

    def attach(self, keep: Callable[[Callable[[], None]], object]) -> None:
        """Register the hooks; `keep` is given each one's removal."""
        first = min(index for indices in self.layers.values() for index in indices)
        for layers in self.family.encoder_stacks(self.model):
            for index, layer in enumerate(layers):
                if index > first:
                    keep(layer.register_forward_pre_hook(self._weigh(index), with_kwargs=True).remove)
                halves = [half for half in HALVES if index in self.layers[half]]
                if not halves:
                    continue
                keep(self.family.encoder_projections(layer)[1].register_forward_hook(self._note_keys).remove)
                # ahead of all hooks but `MlpHalf`'s, which adds first: transformers collects hidden states by hooks of its own
                keep(layer.register_forward_hook(self._after_layer(index, "layer" in halves), prepend=True).remove)
                if "attention" in halves:
                    parts = self.family.encoder_mlp(layer)
                    assert parts is not None  # else it was refused
                    for handle in MlpHalf(layer, parts, partial(self._reduced, index, "attention")).attach():
                        keep(handle.remove)

    def begin(self, sources: Sequence[EncodedSource]) -> dict[int, KeyWeights]:
        """The encoder is about to run on these sources, view after view; returns what will hold each layer's mask."""
        self.sources, self.weights, self.weighed = sources, None, {}
        self.keys = None
        depth = len(self.family.encoder_layers(self.model))
        for source in sources:
            views = visual_views(source.visual)
            source.inside = Inside(depth, *views, sizes=torch.ones(views))
        return self.weighed

    def end(self) -> None:
        self.sources, self.weights, self.keys = (), None, None

    # --- hooks --------------------------------------------------------------------------------------------------

    def _note_keys(self, module: Module, args: Any, output: torch.Tensor) -> None:
        self.keys = output

    def _weigh(self, index: int) -> Callable[..., Any]:
        """Hand a layer the mask that weighs keys by their sizes, and hides rows that only fill up a source beside longer ones."""

        def hook(module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if not self.sources or self.weights is None:
                return None
            self.weighed[index] = self.weights
            bias = self.weights.bias.to(args[0] if args else kwargs["hidden_states"])
            if len(args) > 1:
                return (args[0], bias, *args[2:]), kwargs
            return args, {**kwargs, "attention_mask": bias}

        return hook

    def _after_layer(self, index: int, acts: bool) -> Callable[..., Any]:
        def hook(module: Module, args: tuple, output: Any) -> Any:
            left = self._reduced(index, "layer", output[0] if isinstance(output, tuple) else output) if acts else None
            self.keys = None
            if left is None:
                return None
            return (left, *output[1:]) if isinstance(output, tuple) else left

        return hook

    # --- reducing -----------------------------------------------------------------------------------------------

    def _reduced(self, index: int, after: ActsAfter, hidden: torch.Tensor) -> torch.Tensor | None:
        """The rows [views, rows, width] that are left of every source; None where nothing left."""
        if not self.sources:
            return None
        first, parts, changed = 0, [], False
        for source in self.sources:
            assert source.inside is not None
            views = slice(first, first + source.inside.views)
            first = views.stop
            layer = self._event(source, index, after, hidden[views, self.cls : self.cls + source.inside.tokens], views)
            source.inside.cuts += [EncoderCut(index, after, left) for left in self.reduce(source, layer)]
            source.inside.update(layer)
            changed = changed or layer.anchors is not None
            parts.append(torch.cat([hidden[views, : self.cls], layer.hidden_states], dim=1))
        if not changed:
            return None
        self.weights = self._weights(hidden)
        longest = max(part.shape[1] for part in parts)
        return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

    def _event(self, source: EncodedSource, index: int, after: ActsAfter, hidden: torch.Tensor, views: slice) -> EncoderLayer:
        inside = source.inside
        assert inside is not None
        return EncoderLayer(
            index=index,
            num_layers=inside.layers,
            after=after,
            hidden_states=hidden,
            sizes=inside.sizes.to(hidden.device),
            patches=inside.patches,
            has_cls=bool(self.cls),
            projected_keys=lambda: self._keys(inside, index, views),
            memory=source.memory,
            kind=source.visual.kind,
            checks=inside.checks,
        )

    def _keys(self, inside: Inside, index: int, views: slice) -> torch.Tensor:
        """The keys of the tokens that are there; of one that was merged in this very layer, those of its anchor."""
        assert self.keys is not None
        keys = self.keys[views].unflatten(-1, (self.family.encoder_heads(self.model), -1)).mean(2)
        if inside.history and inside.history[-1][0] == index:
            assert inside.anchors is not None
            return take(inside.whole(keys, index, False, self.cls)[:, self.cls :], inside.anchors)
        return keys[:, self.cls : self.cls + inside.tokens]

    def _weights(self, hidden: torch.Tensor) -> KeyWeights | None:
        """The mask from here on; None where every key counts once."""
        insides = [source.inside for source in self.sources if source.inside is not None]
        rows = [self.cls + inside.tokens for inside in insides]
        if not self.proportional and len(set(rows)) == 1:
            return None
        hidden_rows = torch.finfo(hidden.dtype).min
        parts = []
        for inside, own in zip(insides, rows, strict=True):
            logs = (
                inside.sizes.to(hidden.device).log()
                if self.proportional
                else torch.zeros_like(inside.sizes, device=hidden.device)
            )
            padded = torch.nn.functional.pad(logs, (self.cls, 0))
            parts.append(torch.nn.functional.pad(padded, (0, max(rows) - own), value=hidden_rows))
        return KeyWeights(torch.cat(parts)[:, None, None].to(hidden.dtype), rows)


def visual_views(visual: VisualSource) -> tuple[int, int]:
    """How many views a source has in the encoder, and of how many patches each."""
    grids = visual.encoder_grids
    height, width = grids[0] if grids else (0, 0)
    return len(grids), height * width
