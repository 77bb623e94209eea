"""The most likely subset of a determinantal point process, greedily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Share of its kernel's diagonal below which what is left of a token is float32's rounding error.
_ROUNDING = 1e-6


def dpp_map(kernel: Tensor, count: int) -> Tensor:
    """Greedy MAP of a DPP of fixed size: indices [..., count] in the order of picking, from kernels [..., n, n], float32.

    Always picked is the token that multiplies the determinant of the picked ones' kernel most: argmax of d²_i, what is
    left of K_ii when the picked ones are projected out. The Cholesky factor grows by one row e a pick: e = (K_j - C_j^T C)
    / d_j, d² ← d² - e². A d² within rounding error of 0 (more picks than the kernel's rank) stays there, so that what is
    picked last is picked by K_ii, and nothing twice (count <= n). Ties go to the first.
    """
    diagonal = kernel.diagonal(dim1=-2, dim2=-1)
    least = diagonal * _ROUNDING
    left, free = diagonal, torch.zeros_like(diagonal)
    rows = kernel.new_empty(*diagonal.shape[:-1], count, diagonal.shape[-1])  # the factor, a row a pick
    picks: list[Tensor] = []
    for number in range(count):
        pick = (left + free).argmax(-1, keepdim=True)
        picks.append(pick)
        free = free.scatter(-1, pick, -torch.inf)
        row = kernel.gather(-2, pick[..., None].expand(*pick.shape, kernel.shape[-1]))
        if number:
            known = rows[..., :number, :]
            own = known.gather(-1, pick[..., None].expand(*known.shape[:-1], 1))
            row = row - own.transpose(-1, -2) @ known
        row = row.squeeze(-2) / left.gather(-1, pick).sqrt()
        rows[..., number, :] = row
        left = torch.maximum(left - row.square(), least)
    return torch.cat(picks, -1) if picks else torch.empty(*diagonal.shape[:-1], 0, dtype=torch.long, device=kernel.device)
