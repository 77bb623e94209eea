"""FastV: an image is worth half its tokens after layer 2 (Chen et al., ECCV 2024, arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, TokenReducer, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer


@dataclass
class FastV(TokenReducer):
    """Before layer K, keep the visual tokens that the last prompt token attends to most.

    Score: attention weights of layer K-1 in the last token's row, averaged over heads. Of the V visual
    tokens that entered, `rank` stay, or round((1-R)·V) (banker's rounding, as in the released code); they keep order
    and positions. Layers before K see, and cache, everything.

    The released code runs layer K-1 in eager mode for its full attention map; here one row of it is computed. Its
    second path only masks; here tokens are dropped, and equal its in-place path.
    """

    K: Annotated[int, Field(ge=1, description="Layers that see every token; the cut comes after layer K - 1.")] = 2
    R: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens dropped.")] = 0.5
    rank: Annotated[int | None, Field(ge=0, description="Exact number kept, instead of R.")] = None

    name: ClassVar[str] = "fastv"
    text_aware: ClassVar[bool] = True

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        return {self.K - 1: round((1 - self.R) * entered) if self.rank is None else self.rank}

    def score(self, layer: DecoderLayer) -> Tensor:
        return layer.attention("last")[:, 0].mean(0)

    def score_flops(self, tokens: int, architecture: Architecture) -> int:
        return ops.attention_flops(1, tokens, architecture.heads, architecture.head_dim)

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        return self.replace(R=1 - retention, rank=None)
