"""Picking tokens by rank or by place, and pooling neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of scores [tokens], ascending; of equal scores the first ones are taken."""
    return scores.argsort(descending=True, stable=True)[: max(count, 0)].sort().values


def share_of(tokens: int, share: float) -> int:
    """round(share · tokens), at least one of any, at most all."""
    return min(tokens, max(1, round(share * tokens)))


def alike(views: Sequence[Tensor], left: Sequence[int]) -> Iterator[tuple[list[int], Tensor, int]]:
    """Views of one size of which equally many tokens are left: their numbers, token indices [v, t], and how many are left.

    `views` hold each view's token indices. So what is done to views one by one is done to all frames of a video at once.
    Views of which nothing is left are not among them.
    """
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, (view, count) in enumerate(zip(views, left, strict=True)):
        if count:
            numbers.setdefault((len(view), count), []).append(number)
    for (_, count), group in numbers.items():
        yield group, torch.stack([views[number] for number in group]), count


def pick_views(views: Sequence[Tensor], left: Sequence[int], pick: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Choose `left` tokens of each view: their indices [sum(left)], view after view.

    `pick(index [v, t], count)` chooses `count` places [v, count] of t in v views at once (see `alike`).
    """
    chosen = [view[:0] for view in views]
    for numbers, index, count in alike(views, left):
        for number, kept in zip(numbers, index.gather(1, pick(index, count)), strict=True):
            chosen[number] = kept
    return torch.cat(chosen)


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
