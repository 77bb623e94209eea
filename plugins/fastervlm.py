"""FasterVLM: keep what the encoder's CLS token attends to (Zhang et al., 2024, arXiv 2412.01818v1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Source, TokenReducer, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class FasterVLM(TokenReducer):
    """In each view (image, tile, frame) of N tokens keep the round(retention · N) that CLS attends to most.

    Score: the CLS token's row of attention in the layer whose output goes to the projector, mean over heads; without CLS
    the mean over all queries in the last layer. Kept tokens stay in raster order; those of tiles stand row by row over the
    whole grid, behind the base view, without newlines.

    Selected before the projector, which maps each token alone, so that it gives what selecting behind it gives. A video
    whose frames the model pools is selected after pooling, by scores pooled alike. On purpose: more tokens than there are
    is no error, and at least one of each view stays.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.25
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "fastervlm"

    def early(self, source: Source, architecture: Architecture) -> bool:
        return not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        score = tokens.encoder_saliency().mean(0)

        def most_attended(index: Tensor, count: int) -> Tensor:
            return score[index].argsort(descending=True, stable=True)[:, :count]

        return tokens.in_reading_order(ops.pick_views(tokens.views(), tokens.left or (), most_attended))
