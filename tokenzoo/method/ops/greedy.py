"""Choosing tokens one after another: each pick depends on those before it, and none makes a GPU wait for the host."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosines of all pairs in float32: features [..., n, c] -> [..., n, n]."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def farthest_first(distance: Tensor, count: int) -> Tensor:
    """Greedy max-min diversity: indices [..., count] in the order of picking, from distances [..., n, n].

    First the one whose nearest other is farthest, then always the one whose nearest picked one is farthest:
    argmax_i min_{s picked} D[s, i]. Nothing is picked twice (count <= n); ties go to the first.
    """
    self_distance = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    to_others = distance.masked_fill(self_distance, math.inf)
    to_picked = to_others.amin(-2, keepdim=True)
    rows = distance.masked_fill(self_distance, -math.inf)  # so that the minimum also strikes off who was picked
    picks: list[Tensor] = []
    for _ in range(count):
        if picks:
            row = rows.gather(-2, picks[-1].expand_as(to_picked))
            to_picked = torch.minimum(to_picked, row) if len(picks) > 1 else row
        picks.append(to_picked.argmax(-1, keepdim=True))
    return torch.cat(picks, -1).squeeze(-2) if picks else _nothing(distance)


def max_coverage(values: Tensor, count: int, weight: Tensor | None = None, bonus: Tensor | None = None) -> Tensor:
    """Greedy maximum coverage (facility location): indices [..., count] in the order of picking, from values [..., m, n].

    Each of the m rows is covered by as much as its best picked column gives, at least by 0. Always picked is
    argmax_j weight_j · sum_i max(0, V_ij - covered_i) + bonus_j, with weight, bonus [..., n] 1 and 0 where they are left
    out. Nothing is picked twice (count <= n); ties go to the first.
    """
    covered = values.new_zeros(*values.shape[:-1], 1)
    free = torch.zeros_like(values[..., 0, :])  # -inf where a column was picked
    picks: list[Tensor] = []
    for _ in range(count):
        gain = (values - covered).clamp_(min=0).sum(-2)
        gain = gain if weight is None else gain * weight
        gain = gain if bonus is None else gain + bonus
        picks.append((gain + free).argmax(-1, keepdim=True))
        free = free.scatter(-1, picks[-1], -math.inf)
        column = picks[-1].unsqueeze(-2).expand_as(covered)
        covered = torch.maximum(covered, values.gather(-1, column))
    return torch.cat(picks, -1) if picks else _nothing(values)


def _nothing(values: Tensor) -> Tensor:
    return torch.empty(*values.shape[:-2], 0, dtype=torch.long, device=values.device)
