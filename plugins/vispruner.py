"""VisPruner: important tokens by CLS attention, diverse ones beside them (Zhang et al., ICCV 2025, arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class VisPruner(TokenReducer):
    """In each view of N tokens keep T = round(retention · N): int(T · important) by attention, the others by diversity.

    **Important**: what CLS attends to most, mean over heads (without CLS: the mean over all queries in the last layer).
    **Diverse**: the remaining list R, in descending attention, shrinks until it holds the rest of T. Each time its even places
    a and odd places b are compared, s_i = max_j cos(a_i, b_j) of encoder features; the r = min(8, |R| - rest, |a|) of a
    with the largest s go, and R becomes the others of a by descending s, then b.

    Kept tokens stay in raster order; those of tiles stand row by row over the whole grid, behind the base view, without
    newlines. Dropped before the projector; a video whose frames the model pools, after pooling.

    On purpose other than released: odd lists and last steps larger than |a| work (|a| = ceil(|R| / 2); the released code
    crashes), more tokens than there are is no error. One near-tie changes all that follows: in half precision equal
    sets are not to be expected, also not of the released code.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.2222
    important: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of those kept by attention.")] = 0.5
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "vispruner"

    def early(self, source: Source, architecture: Architecture) -> bool:
        return not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer, architecture.feature_layer)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.architecture is not None
        score = tokens.encoder_saliency().mean(0)
        features = tokens.encoder_features(tokens.architecture.feature_layer)

        def pick(index: Tensor, count: int) -> Tensor:
            ranked = score[index].argsort(descending=True, stable=True)
            first = int(count * self.important)
            return torch.cat([ranked[:, :first], diverse(features[index], ranked[:, first:], count - first)], 1)

        return tokens.in_reading_order(ops.pick_views(tokens.views(), tokens.left or (), pick))


def diverse(features: Tensor, rest: Tensor, count: int) -> Tensor:
    """Thin out the list `rest` [views, r] of tokens of features [views, n, c] until `count` of each view are left."""
    if count == 0:
        return rest[:, :0]
    cosines = ops.cosine_similarity(features)
    view = torch.arange(len(rest), device=rest.device)[:, None, None]
    while rest.shape[1] > count:
        even, odd = rest[:, ::2], rest[:, 1::2]
        likeness = cosines[view, even[:, :, None], odd[:, None]].amax(-1)
        order = likeness.argsort(descending=True, stable=True)
        drop = min(8, rest.shape[1] - count, even.shape[1])
        rest = torch.cat([even.gather(1, order[:, drop:]), odd], 1)
    return rest
