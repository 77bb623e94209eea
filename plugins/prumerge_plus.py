"""LLaVA-PruMerge+: PruMerge plus tokens spread evenly over the picture (arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tokenzoo_plugins.prumerge import PruMerge, outlier_share

from tokenzoo import TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PruMergePlus(PruMerge):
    """PruMerge that also keeps a regular grid of tokens, behind the attended ones.

    Adaptive: every int(int(1 / share) / 3)-th token that is not kept already. Fixed: as many grid tokens as
    attended ones (step int(1 / ratio)), 25 % for the default ratio of 1/8. Where a grid token is kept already, the
    next attended one takes its place, so the count is exact; `official_duplicates=True` keeps it twice, as the
    released code does, which also drops as many of the first unkept tokens from the merge.
    """

    official_duplicates: Annotated[
        bool, Field(description="Keep a grid token twice where it was attended too, as the released code does.")
    ] = False

    name: ClassVar[str] = "prumerge_plus"

    def pick(self, attention: Tensor, budget: int | None) -> Tensor:
        total = len(attention)
        ranked = attention.argsort(descending=True, stable=True)
        if budget is None and self.mode == "adaptive":
            share = outlier_share(attention)
            kept = ranked[: int(total * share)]
            step = max(1, int(1 / share) // 3) if share else total
            return torch.cat([kept, _without(torch.arange(0, total - 1, step, device=kept.device), kept)])
        count, grid = self.picks(total, budget), self.grid(total, budget).to(ranked.device)
        if count >= total:
            return ranked
        if self.official_duplicates:
            return torch.cat([ranked[: count - len(grid)], grid])
        # attended tokens by rank until count - len(grid) of them are off the grid; then the rest of the grid
        off_grid = torch.ones(total, dtype=torch.bool, device=ranked.device)
        off_grid[grid] = False
        off_grid = off_grid[ranked]
        missing = count - len(grid) - off_grid.cumsum(0)
        attended = torch.where(off_grid, missing >= 0, missing > 0)
        place = torch.arange(total, device=ranked.device)
        order = torch.where(attended, place, torch.where(off_grid, 2 * total, total + ranked))
        return ranked[order.argsort()[:count]]

    def grid(self, total: int, budget: int | None) -> Tensor:
        """The grid tokens of a fixed choice: the middles of equal intervals."""
        if budget is None:
            step = int(1 / self.ratio)
            return torch.arange(step // 2, max(total - 1, step // 2), step)
        count = max(budget - 1, 0) // 2
        return ops.uniform_indices(total, count)

    def picks(self, tokens: int, budget: int | None) -> int:
        if budget is not None:
            return super().picks(tokens, budget)
        step = int(1 / self.ratio)
        return min(tokens, int(tokens * self.ratio) + len(range(step // 2, tokens - 1, step)))

    def unpicked(self, picked: Tensor, total: int) -> Tensor:
        """As in PruMerge; the released code takes a duplicate for another token and so loses one at the front."""
        if not self.official_duplicates:
            return super().unpicked(picked, total)
        rest = super().unpicked(picked.unique(), total)
        return rest[len(rest) - (total - len(picked)) :]

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """Half attended, half grid."""
        ratio = retention / 2 if retention < 1 else 1.0
        return self.replace(mode="fixed", ratio=ratio, tokens=None)


def _without(indices: Tensor, taken: Tensor) -> Tensor:
    return indices[~torch.isin(indices, taken)]
