"""A budget shared out among groups of tokens (frames, crops), and each group's best tokens; no loop over the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def apportion(shares: Tensor, sizes: Tensor, total: int, least: int = 0) -> Tensor:
    """Whole numbers [groups] that add up to `total`, as near to `shares` [groups] as they can be.

    Each is floor(share + λ) with one λ for all, no more than the group's size and, while `total` lasts, no less than
    `least`: the largest remainders where the shares add up to `total`. Ties go to the first group.
    """
    seat = torch.arange(int(sizes.max()), device=shares.device)
    claim = shares[:, None] - seat
    claim = claim.masked_fill(seat < least, torch.inf).masked_fill(seat >= sizes[:, None], -torch.inf)
    taken = claim.flatten().argsort(descending=True, stable=True)[:total] // len(seat)
    return torch.zeros_like(sizes).index_add_(0, taken, torch.ones_like(taken))


def top_of_groups(scores: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    """The `counts` [groups] highest of scores [tokens] in each group, by descending score, one group after another.

    `group` [tokens] tells each token's group. Of equal scores the first tokens are taken.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.zeros_like(counts).index_add_(0, group, torch.ones_like(group))
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device) - first[group[order]]
    return order[rank < counts[group[order]]]
