"""HiPrune: anchors of a middle encoder layer, their neighbours, and a deep layer's (Liu et al., 2025, arXiv 2508.00553)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Source, TokenReducer, UserError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class HiPrune(TokenReducer):
    """In each view of N tokens keep T = round(retention · N): anchors, buffers around them, registers.

    Score of a layer: attention on each token, mean over heads and over all queries (CLS among them where there is one).
    **Anchors**: the round(T · alpha / 5) highest of the object layer. **Buffers**: their neighbours i ± 1 and i ± W
    in a grid W wide, held within 0..N-1 (rows wrap). **Registers**: the highest of the deep layer among the others, until T.
    The deep layer is that whose output goes to the projector. The object layer, counted from 1, is by default the 9th of 24
    of an encoder with CLS, the 16th of 32 of one without, and that share of another depth.

    Kept tokens stay in raster order; those of tiles stand row by row over the whole grid, behind the base view, without
    newlines. Dropped before the projector; a video whose frames the model pools, after pooling.

    On purpose other than released: for Qwen2.5-VL the released code sums over queries and excludes by subtracting 1, which
    does not exclude, so that fewer than T remain; here an anchor or buffer is out for certain. Where alpha is so large that
    anchors and buffers exceed T, anchors come first (released: a crash). Each view has its own share, where the released
    code divides one budget by all views of the call.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.3333
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of anchors and buffers in T.")] = 0.1
    object_layer: Annotated[int | None, Field(ge=1, description="Encoder layer of the anchors, from 1 (null: by depth).")] = None
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "hiprune"

    whole_views: ClassVar[bool] = True

    def check_model(self, architecture: Architecture) -> None:
        if self.object_layer is not None and self.object_layer > architecture.encoder_layers > 0:
            raise UserError(
                f"HiPrune takes its anchors from encoder layer {self.object_layer}, but {architecture.name} has "
                f"{architecture.encoder_layers}. Set object_layer to one of them, counted from 1, or leave it out."
            )

    def early(self, source: Source, architecture: Architecture) -> bool:
        return not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, int]:
        share = 9 / 24 if architecture.has_cls else 16 / 32
        return (self.object_layer or max(1, round(share * architecture.encoder_layers))) - 1, architecture.feature_layer

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.architecture is not None
        layers = self.encoder_layers(tokens.architecture)
        middle, deep = (tokens.encoder_attention(layer, "all").mean(0) for layer in layers)
        widths = {height * width: width for height, width in tokens.grids}

        def pick(index: Tensor, count: int) -> Tensor:
            last, width = len(index[0]) - 1, widths[len(index[0])]
            anchors = middle[index].argsort(descending=True, stable=True)[:, : round(count * self.alpha / 5)]
            buffers = torch.cat([anchors + step for step in (-1, 1, -width, width)], 1).clamp(0, last)
            rank = deep[index].scatter(1, buffers, torch.finfo(deep.dtype).max).scatter(1, anchors, math.inf)
            return rank.argsort(descending=True, stable=True)[:, :count]

        return tokens.in_reading_order(ops.pick_views(tokens.views(), tokens.left or (), pick))
