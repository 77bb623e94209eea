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


def distances(points: Tensor) -> Tensor:
    """Euclidean distances of points [..., n, d], divided by √d: [..., n, n], float32, symmetric to the bit, 0 to itself.

    Taken from products of the centred points; symmetry is what lets equal densities be told to be equal.
    """
    points = points.float() - points.float().mean(-2, keepdim=True)
    products = torch.matmul(points, points.transpose(-1, -2))
    products = (products + products.transpose(-1, -2)) / 2
    norms = products.diagonal(dim1=-2, dim2=-1)
    squares = norms[..., :, None] + norms[..., None, :] - 2 * products
    return (squares.clamp(min=0) / points.shape[-1]).sqrt()


def dpc_knn(points: Tensor, count: int, neighbours: int, noise: Tensor | None = None) -> Clusters:
    """The `count` density peaks of points [..., n, d], and each point's nearest one.

    With the distances D = L2 / √d: density ρᵢ = exp(-mean of D² to the `neighbours` nearest points, itself included);
    δᵢ = distance to the nearest denser point, for the densest one the largest distance of all; peaks are the highest
    ρᵢ · δᵢ. Of equal densities the lower index counts as denser, of equal scores or distances the first is taken.

    The published codes add noise to ρ to break ties and are random where `neighbours` is 1 or 2; here it is off.
    `noise` [..., n] repeats one of their draws.
    """
    return density_peaks(distances(points), count, neighbours, noise)


def density_peaks(apart: Tensor, count: int, neighbours: int, noise: Tensor | None = None) -> Clusters:
    """`dpc_knn` of points of which the distances [..., n, n] are known."""
    nearest = apart.topk(min(neighbours, apart.shape[-1]), largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    if noise is not None:
        density = density + noise
    rank = density.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    denser = rank[..., None, :] < rank[..., :, None]
    most = apart.amax((-2, -1))
    delta = apart.masked_fill(~denser, torch.inf).amin(-1)
    score = density * torch.where(rank == 0, most[..., None], delta)
    centres = score.argsort(dim=-1, descending=True, stable=True)[..., :count]
    to_centre = apart.gather(-1, centres[..., None, :].expand(*apart.shape[:-1], -1))
    own = torch.arange(centres.shape[-1], device=centres.device).expand_as(centres)
    return Clusters(centres, to_centre.argmin(-1).scatter(-1, centres, own))
