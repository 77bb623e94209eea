"""`uniform`: keep every n-th visual token, the baseline that needs no score at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer, Workload, ops
from tokenzoo.lazy import torch
from tokenzoo.method.reducer import PositionPolicy

if TYPE_CHECKING:
    from tokenzoo.method.events import VisualTokens


@dataclass
class UniformSelection(TokenReducer):
    """Before the LLM, keep round(retention · n) of each image's or video's n visual tokens at equal distances."""

    retention: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.25
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "uniform"

    @property
    def entry_positions(self) -> PositionPolicy:  # type: ignore[override]
        return self.position

    def pre_llm(self, tokens: VisualTokens) -> torch.Tensor | None:
        total = len(tokens.features)
        count = round(self.retention * total)
        return None if count == total else ops.uniform_indices(total, count).to(tokens.features.device)

    def schedule(self, workload: Workload) -> list[int]:
        kept = sum(round(self.retention * sum(s.view_tokens)) + s.structural for s in workload.sources)
        return [kept] * workload.architecture.layers

    def at_retention(self, retention: float) -> UniformSelection:
        return self.replace(retention=retention)  # type: ignore[return-value]
