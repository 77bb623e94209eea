"""Density-peak clustering of tokens (DPC-kNN), which several methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Clusters(NamedTuple):
    """`centres` [..., count]: the points that are centres, by descending score; `assignment` [..., n]: the place among
    `centres` of the one that each point belongs to (a centre belongs to itself)."""

    centres: Tensor
    assignment: Tensor


def squared_distances(points: Tensor) -> Tensor:
    """Squared Euclidean distances of points [..., n, d], divided by d: [..., n, n], float32, symmetric to the bit.

    Each point is 0 from itself and more than that from any other, by the least number there is from one that is equal.
    Taken from products of the centred points; symmetry is what lets equal densities be told to be equal.
    """
    points = points.float()
    centred = points - points.mean(-2, keepdim=True)
    products = torch.matmul(centred, centred.transpose(-1, -2))
    half = products.diagonal(dim1=-2, dim2=-1)[..., None, :] - products
    squares = (half + half.transpose(-1, -2)).div_(points.shape[-1]).clamp_(min=torch.finfo(torch.float32).tiny)
    squares.diagonal(dim1=-2, dim2=-1).zero_()
    return squares


def dpc_knn(points: Tensor, count: int, neighbours: int, noise: Tensor | None = None) -> Clusters:
    """The `count` density peaks of points [..., n, d], and each point's nearest one.

    With the distances D = L2 / √d: density ρᵢ = exp(-mean of D² to the `neighbours` nearest points, itself included);
    δᵢ = distance to the nearest denser point, which the densest one does not have, so that it comes first; peaks are the
    highest ρᵢ · δᵢ. Of equal densities the lower index counts as denser, of equal scores or distances the first is taken.

    The published codes add noise to ρ to break ties and are random where `neighbours` is 1 or 2; here it is off.
    `noise` [..., n] repeats one of their draws.
    """
    return density_peaks(squared_distances(points), count, neighbours, noise)


def density_peaks(squares: Tensor, count: int, neighbours: int, noise: Tensor | None = None) -> Clusters:
    """`dpc_knn` of points of which the squared distances [..., n, n] are known (see `squared_distances`).

    In logarithms, in which no density is too low to be told from another: log(ρᵢ² · δᵢ²) = log δᵢ² + 2 log ρᵢ.
    """
    sparsity = squares.topk(min(neighbours, squares.shape[-1]), largest=False).values.mean(-1)  # -log ρ
    if noise is not None:
        sparsity = -((-sparsity).exp() + noise).log()
    rank = sparsity.argsort(dim=-1, stable=True).argsort(dim=-1)
    not_denser = rank[..., None, :] >= rank[..., :, None]
    to_denser = squares.masked_fill(not_denser, torch.finfo(torch.float32).max).amin(-1)
    score = torch.sub(to_denser.log(), sparsity, alpha=2)
    centres = score.argsort(dim=-1, descending=True, stable=True)[..., :count]
    to_centre = squares.gather(-1, centres[..., None, :].expand(*squares.shape[:-1], -1))
    return Clusters(centres, to_centre.argmin(-1))
