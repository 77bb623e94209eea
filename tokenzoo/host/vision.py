"""Reductions before the projector: the projector runs on what is left, and the model never notices.

The model counts placeholders against image features, so the projector's caller gets a stand-in of the full shape
(an expanded zero); the true tokens wait in the prompt until the decoder's input is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tokenzoo.host.events import VisualTokens
from tokenzoo.host.family import Family
from tokenzoo.host.prompt import KINDS, Prompt


class ProjectorHooks:
    """Hooks on the projector, and on the encoder layers whose q and k a method reads."""

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        encoder_layers: Sequence[int],
        reduce: Callable[[VisualTokens], None],
    ) -> None:
        self.family, self.model, self.reduce = family, model, reduce
        self.prompt: Prompt | None = None
        self.calls = 0
        self.recorded: dict[int, list[torch.Tensor]] = {}
        self.pending: tuple[torch.Tensor, list[Any]] | None = None
        self.encoder_layers = encoder_layers

    def attach(self) -> list[Any]:
        """Register the hooks and return their handles."""
        projector = self.family.projector(self.model)
        handles = [
            projector.register_forward_pre_hook(self.before, with_kwargs=False),
            projector.register_forward_hook(self.after),
        ]
        layers = self.family.encoder_layers(self.model)
        for index in self.encoder_layers:
            for position, module in enumerate(self.family.encoder_projections(layers[index])):
                handles.append(module.register_forward_hook(self._recorder(index, position)))
        return handles

    def begin(self, prompt: Prompt) -> None:
        """A prefill begins: the projector will be called for its images, then for its videos."""
        self.prompt, self.calls, self.pending = prompt, 0, None
        self.recorded.clear()

    def _recorder(self, index: int, position: int) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self.recorded.setdefault(index, [])[position:] = [output]

        return record

    def before(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        """Let the methods reduce each source; hand what is left to the projector."""
        if self.prompt is None:
            return None
        kinds = [kind for kind in KINDS if self.prompt.of_kind(kind)]
        sources = self.prompt.of_kind(kinds[self.calls])
        self.calls += 1
        visuals = [source.visual for source in sources]
        query_keys = {
            index: self.family.split_recorded(self.model, outputs, visuals)
            for index, outputs in self.recorded.items()
        }
        parts = self.family.split_features(self.model, args[0], visuals)
        for number, (source, features) in enumerate(zip(sources, parts, strict=True)):
            grids = source.visual.encoder_grids
            sizes = torch.tensor([height * width for height, width in grids])
            source.tokens = VisualTokens(
                kind=source.visual.kind,
                features=features,
                view=torch.arange(len(grids)).repeat_interleave(sizes).to(features.device),
                grids=grids,
                memory=self.prompt.memory(source.sample),
                recorded_layers={index: pairs[number] for index, pairs in query_keys.items()},
                encoder_heads=self.family.encoder_heads(self.model),
                has_cls=self.family.has_cls,
            )
            self.reduce(source.tokens)
        self.recorded.clear()
        if all(source.tokens.anchors is None for source in sources):  # type: ignore[union-attr]
            for source in sources:
                source.tokens = None
            return None
        self.pending = args[0], sources
        left = torch.cat([source.tokens.features for source in sources])  # type: ignore[union-attr]
        return (self.family.projector_input(self.model, left),)

    def after(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Keep the projected tokens for the decoder's input; return the stand-in."""
        if self.pending is None:
            return None
        features, sources = self.pending
        self.pending = None
        projected = self.family.projector_output(output)
        counts = [len(source.tokens.features) for source in sources]
        for source, part in zip(sources, projected.split(counts), strict=True):
            source.projected = part
        return self.family.placeholder_output(self.model, features, output)
