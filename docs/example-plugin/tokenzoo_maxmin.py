"""DivPrune: diversity-based visual token pruning (Alvar et al., CVPR 2025, arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, Source, TokenReducer, hookimpl
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from tokenzoo import VisualTokens


@dataclass
class DivPrune(TokenReducer):
    """Before the LLM, keep the round(ratio · n) of n visual tokens whose smallest mutual distance is greatest.

    Greedy max-min selection by the cosine distance of the projected embeddings: first the token whose
    nearest other token is farthest, then always the token farthest from all chosen so far. Kept tokens stay in raster
    order and are renumbered. An image's views, or a video's frames, are one set.

    Deviation of the released code: in half precision it can choose a token twice; here a chosen token is out.
    """

    ratio: Annotated[float, Field(gt=0, le=1, description="share of the visual tokens that stay (paper: 0.098)")] = 0.098

    name: ClassVar[str] = "divprune"
    knob: ClassVar[str] = "ratio"

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> int:
        return round(self.ratio * sum(views))

    def reduce(self, tokens: VisualTokens) -> torch.Tensor:
        return farthest_first(tokens.features, tokens.count)

    def reduce_flops(self, views: Any, left: Any, source: Source, architecture: Architecture) -> int:
        """The matrix of cosines: n x n x hidden multiply-adds, where any token is chosen."""
        return 2 * sum(views) ** 2 * architecture.hidden if sum(left) else 0


def farthest_first(features: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count], ascending, chosen from features [tokens, hidden] by greedy max-min cosine distance."""
    if count == 0:
        return torch.arange(0, device=features.device)
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.T
    nearest = distance.fill_diagonal_(torch.inf).amin(0)
    chosen = [nearest.argmax()]
    to_chosen = torch.full_like(nearest, torch.inf)
    for _ in range(count - 1):
        to_chosen = torch.minimum(to_chosen, distance[chosen[-1]])
        to_chosen[chosen[-1]] = -torch.inf
        chosen.append(to_chosen.argmax())
    return torch.stack(chosen).sort().values


@hookimpl
def tokenzoo_methods() -> list[type[TokenReducer]]:
    return [DivPrune]


@hookimpl
def tokenzoo_registry() -> dict[str, Any]:
    """What `tokenzoo show divprune` tells beyond the class itself."""
    return {
        "methods": {
            "divprune": {
                "title": "DivPrune",
                "summary": "keep the tokens most different from each other (greedy max-min)",
                "paper": {
                    "title": "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
                    "arxiv": "2503.02175",
                    "venue": "CVPR",
                    "year": 2025,
                    "code": "https://github.com/vbdi/divprune",
                },
                "faithfulness": "Written from the paper; equal choices in float32, no duplicates in half precision.",
                "presets": {
                    "official": {"parameters": {"ratio": 0.098}, "description": "LLaVA-1.5, 56 of 576 tokens"},
                    "tokens-192": {"parameters": {"ratio": 0.3333}, "description": "192 of 576 tokens"},
                    "tokens-64": {"parameters": {"ratio": 0.1111}, "description": "64 of 576 tokens"},
                },
            }
        }
    }
