"""EVS, Efficient Video Sampling: drop what did not change since the frame before (Bagrov et al., 2025, arXiv 2510.14624)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import PositionPolicy, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class EVS(TokenReducer):
    """Before the LLM, keep the tokens of a video that changed most; images are left alone.

    Change of the token x at place p of frame t: 1 - cos(x_tp, x_(t-1)p) of the embeddings; all of frame 0 stay. Of T frames
    of P tokens the max(P, int(T · P · (1 - rate))) of greatest change stay, so frames share the budget by content. They
    stay in raster order and keep their positions.

    This is the rule of vLLM's implementation; the paper compares pixels of patches instead. Other than there, the text behind
    the video keeps its positions too (vLLM counts on from the grid's width alone).
    """

    rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, description="Share of a video's tokens dropped.")] = 0.75
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: each its own, or 0..n-1.")] = "keep"

    name: ClassVar[str] = "evs"
    knob: ClassVar[str] = "rate"

    whole_views: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> int:
        if source.kind == "image":
            return sum(views)
        return max(max(views, default=0), int(sum(views) * (1 - self.rate)))

    def reduce(self, tokens: VisualTokens) -> Tensor:
        frames = tokens.features.float().view(len(tokens.grids), -1, tokens.features.shape[-1])
        change = 1 - torch.nn.functional.cosine_similarity(frames[1:], frames[:-1], dim=-1)
        first = torch.full_like(change[:1], torch.inf)
        return ops.top_indices(torch.cat([first, change]).flatten(), tokens.count or 0)

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        return self.replace(rate=1 - retention)
