"""G-Prune: keep the visual tokens that gather most information from their like (Jiang et al., AAAI 2025, arXiv 2501.02268)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import PositionPolicy, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass
class GPrune(TokenReducer):
    """Before the LLM, keep int(retention · n) of the n tokens of each view, those with the highest w_j / deg_j.

    Each view (base picture, grid of tiles, frame) is a graph of its embeddings x: tokens with cos(x_i, x_j) >= `similarity`
    are neighbours, itself included; deg_j is how many there are. Information spreads along A = row softmax of cos /
    `temperature` over the neighbours: w is the row of ‖x_j‖, and w ← w A, `iterations` times. Kept tokens stay in
    order and keep their positions.

    In float32 whatever the model's type: in half precision the published rule loses neighbours to underflow. At
    least one token of a view stays.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.5
    similarity: Annotated[float, Field(ge=-1, le=1, description="Least cosine of two neighbours.")] = 0.5
    temperature: Annotated[Positive, Field(description="Softmax temperature of the graph.")] = 0.03
    iterations: Annotated[int, Field(ge=0, description="Rounds in which information spreads.")] = 5
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "keep"

    name: ClassVar[str] = "gprune"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> list[int]:
        return [max(min(tokens, 1), int(self.retention * tokens)) for tokens in views]

    def reduce(self, tokens: VisualTokens) -> Tensor:
        def best(index: Tensor, count: int) -> Tensor:
            score = self.information(tokens.features[index])
            return score.argsort(dim=-1, descending=True, stable=True)[:, :count].sort().values

        assert tokens.left is not None
        return ops.pick_views(tokens.views(), tokens.left, best)

    def information(self, x: Tensor) -> Tensor:
        """w / deg of the tokens x [views, n, c] of some views: [views, n]."""
        cosine = ops.cosine_similarity(x)
        neighbours = cosine >= self.similarity
        spread = (cosine / self.temperature).masked_fill(~neighbours, -torch.inf).softmax(-1)
        information = x.float().norm(dim=-1)[:, None]
        for _ in range(self.iterations):
            information = information @ spread
        return information[:, 0] / neighbours.sum(-1)
