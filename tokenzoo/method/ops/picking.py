"""Picking tokens by rank or by place, and pooling neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of scores [tokens], ascending; of equal scores the first ones are taken."""
    return scores.argsort(descending=True, stable=True)[: max(count, 0)].sort().values


def uniform_indices(total: int, count: int) -> Tensor:
    """`count` of 0..total-1 at equal distances, ascending: the middles of `count` equal intervals."""
    return (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))


def average_pool(features: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Mean of each stride × stride window, border windows over what lies inside the grid.

    `features` [views, height · width, c] -> [views, ceil(height / stride) · ceil(width / stride), c].
    """
    planes = features.transpose(1, 2).unflatten(2, grid).float()
    pooled = torch.nn.functional.avg_pool2d(planes, stride, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2).to(features.dtype)
