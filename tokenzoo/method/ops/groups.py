"""A budget shared out among groups of tokens (frames, crops), and each group's best tokens; no loop over the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def apportion(shares: Tensor, sizes: Sequence[int], total: int, least: int = 0) -> Tensor:
    """Whole numbers [groups] that add up to `total`, as near to `shares` [groups] as they can be.

    Each is floor(share + λ) with one λ for all, no more than the group's size and, while `total` lasts, no less than
    `least`: the largest remainders where the shares add up to `total`. Ties go to the first group.
    """
    most = torch.tensor(sizes, device=shares.device)
    seat = torch.arange(max(sizes), device=shares.device)
    claim = shares[:, None] - seat
    claim = claim.masked_fill(seat < least, torch.inf).masked_fill(seat >= most[:, None], -torch.inf)
    taken = claim.flatten().argsort(descending=True, stable=True)[:total] // len(seat)
    return torch.zeros_like(most).index_add_(0, taken, torch.ones_like(taken))


def top_of_groups(scores: Tensor, group: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """The `counts` [groups] highest of scores [tokens] in each group, by descending score, one group after another.

    `group` [tokens] tells each token's group. Of equal scores the first tokens are taken. `total`: so many indices, which
    spares a GPU the wait for the sum of the counts; where that is less, others follow (the best that are left of each group).
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.zeros_like(counts).index_add_(0, group, torch.ones_like(group))
    owner = group[order]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[owner]
    chosen = rank < counts[owner]
    return order[chosen] if total is None else order[chosen.byte().argsort(descending=True, stable=True)[:total]]
