"""DivPrune: keep the visual tokens most unlike each other (Alvar et al., CVPR 2025, arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, TokenReducer, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

#: Distance below which two tokens are one to float32.
SAME = 1e-6


@dataclass
class DivPrune(TokenReducer):
    """Before the LLM, keep the round(retention · n) of n visual tokens whose smallest mutual distance is greatest.

    Greedy max-min on the embeddings x, with D_ij = 1 - cos(x_i, x_j): first the token whose nearest other is farthest,
    then always argmax_i min_{s kept} D_si. All views of an image, or frames of a video, are one set. Kept tokens stay in
    raster order.

    On purpose other than released: float32 whatever the model's type, a chosen token is out (released: its distance to
    itself is about 0, so duplicates may be kept twice), of tokens that float32 cannot tell apart the first counts (released:
    rounding chooses; the only tile of a small picture is the same as its base view), at least one token stays, and an image's
    newlines are the host's (released: they are tokens like others, of which about one is kept).
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.098
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "divprune"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> int:
        return ops.share_of(sum(views), self.retention)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        distance = 1 - ops.cosine_similarity(tokens.features)
        same = distance < SAME
        repeats = same.tril(-1).any(1)
        distance = distance.masked_fill(same, 0) - SAME * repeats
        return ops.farthest_first(distance, tokens.count or 0).sort().values

    def reduce_flops(self, views: tuple[int, ...], left: Any, source: Any, architecture: Architecture) -> int:
        return 2 * sum(views) ** 2 * architecture.hidden
