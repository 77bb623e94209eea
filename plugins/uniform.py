"""`uniform`: keep every n-th visual token, the baseline that needs no score at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import PositionPolicy, TokenReducer, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class UniformSelection(TokenReducer):
    """Before the LLM, keep round(retention · n) of each image's or video's n visual tokens at equal distances."""

    retention: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.25
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "uniform"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> int:
        return round(self.retention * sum(views))

    def reduce(self, tokens: VisualTokens) -> Tensor:
        return ops.uniform_indices(len(tokens.features), tokens.count or 0).to(tokens.features.device)

    def reduce_flops(self, views: Any, left: Any, source: Any, architecture: Any) -> int:
        return 0
