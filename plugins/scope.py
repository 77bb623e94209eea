"""SCOPE: tokens that cover the picture, weighed by saliency (Deng et al., NeurIPS 2025, arXiv 2510.24214)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Source, TokenReducer, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class SCOPE(TokenReducer):
    """In each view of N tokens pick round(retention · N), one by one, each the one that adds most salient coverage.

    S: cosines of encoder features, a_j: attention of CLS on token j, sum over heads (without CLS: the mean over all queries
    in the last layer). Always picked is argmax_j a_j^alpha · Σ_i max(0, S_ij - c_i), where c_i = max(0, max_{s picked} S_is)
    over all N tokens i; `combine="add"` adds a_j^alpha instead of multiplying.

    Kept tokens stay in raster order; those of tiles stand row by row over the whole grid, behind the base view, without
    newlines. Dropped before the projector; a video whose frames the model pools, after pooling.

    On purpose other than released: float32 whatever the model's type; each view has its own share, where the released code
    divides one budget by all views of the call; more tokens than there are is no error.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.1111
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Exponent of the saliency.")] = 1.0
    combine: Annotated[Literal["multiply", "add"], Field(description="How saliency and coverage are joined.")] = "multiply"
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "scope"

    def early(self, source: Source, architecture: Architecture) -> bool:
        return not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer, architecture.feature_layer)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.architecture is not None
        saliency = tokens.encoder_saliency().sum(0) ** self.alpha
        features = tokens.encoder_features(tokens.architecture.feature_layer)

        def pick(index: Tensor, count: int) -> Tensor:
            cosines, weight = ops.cosine_similarity(features[index]), saliency[index]
            weighed = {"bonus": weight} if self.combine == "add" else {"weight": weight}
            return ops.max_coverage(cosines, count, **weighed)

        return tokens.in_reading_order(ops.pick_views(tokens.views(), tokens.left or (), pick))

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Source, architecture: Architecture) -> int:
        """The saliency in the encoder's views, the cosines in those of which something is left."""
        queries, width = "cls" if architecture.has_cls else "all", architecture.encoder_hidden
        saliency = sum(ops.encoder_attention_flops(count, width, queries) for count in source.encoder_rows(architecture))
        return saliency + sum(2 * tokens**2 * width for tokens, kept in zip(views, left, strict=True) if kept)
