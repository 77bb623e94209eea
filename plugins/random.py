"""`random`: keep a random share of the visual tokens, the baseline that published methods do not always beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import PositionPolicy, TokenReducer
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class RandomSelection(TokenReducer):
    """Before the LLM, keep round(retention · n) of each image's or video's n visual tokens, in their order.

    The choice depends on `seed` and n alone: equal samples of a batch (beams, repeated prompts) keep equal tokens.
    """

    retention: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.25
    seed: Annotated[int, Field(ge=0, description="Another seed, other tokens.")] = 0
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "random"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> int:
        return round(self.retention * sum(views))

    def reduce(self, tokens: VisualTokens) -> Tensor:
        total = len(tokens.features)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + total) % 2**63)
        order = torch.randperm(total, generator=generator, device="cpu")
        return order[: tokens.count].sort().values.to(tokens.features.device)

    def reduce_flops(self, views: Any, left: Any, source: Any, architecture: Any) -> int:
        return 0
