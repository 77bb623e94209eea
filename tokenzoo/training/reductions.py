"""Generic reductions of visual tokens, so that a decoder learns to read any number of them, in any order inside a view.

Random subsets, means of neighbours, pooling, and shuffling with some mixing: none is the rule of a method that ships.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

MODES = {"full": 0.4, "subset": 0.2, "means": 0.15, "pooled": 0.1, "mixed": 0.15}
LEAST_KEPT = 0.05


def reduce(tokens: torch.Tensor, mode: str, rng: np.random.Generator, most: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce the views of a batch, [batch, views, patches, hidden]; every view keeps its place.

    :param most: the largest share of tokens to keep
    :return: tokens [batch, kept, hidden], and where they stood among all [batch, kept], growing
    """
    batch, views, patches, _ = tokens.shape
    if mode == "full":
        return tokens.flatten(1, 2), torch.arange(views * patches).expand(batch, -1)
    share = float(np.exp(rng.uniform(np.log(LEAST_KEPT), np.log(most))))
    if mode == "subset":
        total = views * patches
        return _subset(tokens.flatten(1, 2), torch.arange(total).expand(batch, -1), max(2, round(total * share)))
    if mode == "pooled":
        side = round(patches**0.5)
        grid = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        reduced = F.avg_pool2d(grid, 2, ceil_mode=True).flatten(2).transpose(1, 2).unflatten(0, (batch, views))
    else:
        kept = max(1, round(patches * max(share, LEAST_KEPT)))
        weights = _runs(batch * views, patches, kept) if mode == "means" else _mixes(batch * views, patches, kept, rng)
        reduced = (weights @ tokens.flatten(0, 1).float()).unflatten(0, (batch, views)).to(tokens.dtype)
    each = reduced.shape[2]
    within = torch.arange(each) * patches // each
    places = (torch.arange(views)[:, None] * patches + within).flatten().expand(batch, -1)
    reduced = reduced.flatten(1, 2)
    if rng.random() < 0.3:
        return _subset(reduced, places, max(2, round(reduced.shape[1] * rng.uniform(0.3, 1))))
    return reduced, places


def _subset(tokens: torch.Tensor, places: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.rand(tokens.shape[:2]).topk(min(kept, tokens.shape[1]), 1).indices.sort(1).values
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2])), places.gather(1, index)


def _runs(rows: int, patches: int, kept: int) -> torch.Tensor:
    """Weights [rows, kept, patches] of the means of `kept` runs of neighbours, cut at random."""
    cuts = torch.rand(rows, patches - 1).topk(kept - 1, 1).indices + 1
    run = torch.zeros(rows, patches, dtype=torch.long).scatter_(1, cuts, 1).cumsum(1)
    members = F.one_hot(run, kept).float().transpose(1, 2)
    return members / members.sum(2, keepdim=True)


def _mixes(rows: int, patches: int, kept: int, rng: np.random.Generator) -> torch.Tensor:
    """Weights [rows, kept, patches] of random patches in random order, half of the time each mixed with a few others."""
    weights = F.one_hot(torch.rand(rows, patches).topk(kept, 1).indices, patches).float()
    if rng.random() < 0.5:
        others = torch.rand(rows, kept, patches).pow(12)
        weights = weights + float(rng.uniform(0, 0.7)) * others / others.sum(2, keepdim=True)
        weights = weights / weights.sum(2, keepdim=True)
    return weights
