"""The leading directions of a set of vectors, from a random start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def principal_directions(x: Tensor, rank: int, seed: int, iterations: int = 2) -> Tensor:
    """The `rank` leading right singular vectors of x [m, n] less the mean of its rows: [n, rank], float32.

    Found by a randomised range (Halko, Martinsson and Tropp 2009, algorithm 4.4), so they depend on `seed`: the start is
    drawn on the CPU, so that every device finds the same. `torch.pca_lowrank` after `torch.manual_seed(seed)` on the CPU
    gives these.
    """
    x = x.float() - x.float().mean(0)
    tall = x if x.shape[0] >= x.shape[1] else x.T
    start = torch.randn(tall.shape[1], rank, generator=torch.Generator().manual_seed(seed), device="cpu").to(x.device)
    basis = torch.linalg.qr(tall @ start).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(tall.T @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    left, _, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    return right.T if tall is x else basis @ left


def principal_directions_flops(rows: int, columns: int, rank: int, iterations: int = 2) -> int:
    """Matrix products of `principal_directions` of x [rows, columns]; its factorisations are none."""
    turned = 2 * columns * rank * rank if rows < columns else 0
    return 2 * rows * columns * rank * (2 * iterations + 2) + turned
