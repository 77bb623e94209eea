"""`random`: keep a random share of the visual tokens, the baseline that published methods do not always beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer, Workload
from tokenzoo.lazy import torch
from tokenzoo.method.reducer import PositionPolicy

if TYPE_CHECKING:
    from tokenzoo.method.events import VisualTokens


@dataclass
class RandomSelection(TokenReducer):
    """Before the LLM, keep round(retention · n) of each image's or video's n visual tokens, in their order.

    The choice depends on `seed` and n alone: equal samples of a batch (beams, repeated prompts) keep equal tokens.
    """

    retention: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.25
    seed: Annotated[int, Field(ge=0, description="Another seed, other tokens.")] = 0
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "random"

    @property
    def entry_positions(self) -> PositionPolicy:  # type: ignore[override]
        return self.position

    def pre_llm(self, tokens: VisualTokens) -> torch.Tensor | None:
        total = len(tokens.features)
        count = round(self.retention * total)
        if count == total:
            return None
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + total) % 2**63)
        return torch.randperm(total, generator=generator, device="cpu")[:count].sort().values.to(tokens.features.device)

    def schedule(self, workload: Workload) -> list[int]:
        kept = sum(round(self.retention * sum(s.view_tokens)) + s.structural for s in workload.sources)
        return [kept] * workload.architecture.layers

    def at_retention(self, retention: float) -> RandomSelection:
        return self.replace(retention=retention)  # type: ignore[return-value]
