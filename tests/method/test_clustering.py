"""DPC-kNN against its formulas written out point by point, and against what the published code returned."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import GoldenCases
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import ops

GOLDEN = GoldenCases("golden_more")


def by_hand(points: list[list[float]], count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres in their order and each point's centre."""
    n, width = len(points), len(points[0])
    apart = [[math.dist(a, b) / math.sqrt(width) for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / min(neighbours, n)) for row in apart]

    def denser(other: int, point: int) -> bool:
        return (density[other], -other) > (density[point], -point)

    scores = []
    for point in range(n):
        above = [apart[point][other] for other in range(n) if denser(other, point)]
        scores.append(density[point] * (min(above) if above else max(map(max, apart))))
    centres = sorted(range(n), key=lambda point: -scores[point])[:count]
    belongs = [point if point in centres else min(centres, key=lambda centre: apart[point][centre]) for point in range(n)]
    return centres, [centres.index(centre) for centre in belongs]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**16))
def test_dpc_knn_is_its_formulas(tokens: int, count: int, neighbours: int, seed: int) -> None:
    points = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(seed))
    centres, assignment = by_hand(points.double().tolist(), min(count, tokens), neighbours)
    ours = ops.dpc_knn(points, count, neighbours)
    if neighbours > 2:  # with fewer, densities tie exactly, and float32 and float64 round equal scores apart
        assert ours.centres.tolist() == centres and ours.assignment.tolist() == assignment
    else:
        assert ours.centres[0] == centres[0] and len(set(ours.centres.tolist())) == min(count, tokens)


def test_squared_distances_are_symmetric_to_the_bit_and_0_to_oneself_alone() -> None:
    points = 100 + torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    points[5] = points[3]
    squares = ops.squared_distances(points)
    assert torch.equal(squares, squares.T) and not squares.diagonal().any() and (squares + torch.eye(40) > 0).all()
    assert torch.allclose(squares, (torch.cdist(points.double(), points.double()).square() / 7).float(), atol=1e-4)


def test_points_too_sparse_for_a_density_in_float32_have_peaks_too() -> None:
    """exp(-280) is 0 there; the middle one of three is the densest all the same."""
    clusters = ops.dpc_knn(torch.tensor([[0.0], [20.0], [41.0], [1000.0], [1021.0], [1043.0]]), 2, 3)
    assert sorted(clusters.centres.tolist()) == [1, 4]
    assert len(set(clusters.assignment[:3].tolist())) == len(set(clusters.assignment[3:].tolist())) == 1


def test_dpc_knn_of_several_sets_is_that_of_each() -> None:
    points = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0))
    together = ops.dpc_knn(points, 4, 5)
    for number in range(3):
        alone = ops.dpc_knn(points[number], 4, 5)
        assert torch.equal(together.centres[number], alone.centres)
        assert torch.equal(together.assignment[number], alone.assignment)


def test_of_mutual_nearest_neighbours_the_first_is_denser() -> None:
    """Two neighbours: the pairs (0, 1) and (2, 3) have equal densities each, so only one of each is a peak."""
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [9.0, 0.0], [9.2, 0.0]])
    assert ops.dpc_knn(points, 2, 2).centres.tolist() == [0, 2]
    assert ops.dpc_knn(points, 2, 2).assignment.tolist() == [0, 0, 1, 1]


def test_with_one_neighbour_every_density_is_one_and_the_first_point_the_densest() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.1, 0.0]])
    clusters = ops.dpc_knn(points, 1, 1)
    assert clusters.centres.tolist() == [0] and clusters.assignment.tolist() == [0, 0, 0]


def test_equal_points_are_one_peak() -> None:
    points = torch.tensor([[1.0, 2.0]] * 3 + [[5.0, 5.0]] * 3)
    clusters = ops.dpc_knn(points, 2, 3)
    assert clusters.centres.tolist() == [0, 3] and clusters.assignment.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["sparsevlm_merge_n12_c2_noise", "sparsevlm_merge_n83_c9", "sparsevlm_merge_n83_c9_noise"])
def test_clusters_as_published(name: str) -> None:
    arrays = GOLDEN.arrays(name)
    points, noise, merged = (arrays[key] for key in ("candidates", "noise", "merged"))
    count = int(arrays["num_clusters"])
    ours = ops.dpc_knn(points, count, count, noise * 1e-6)
    means = ops.mean_by_assignment(points[None], ours.assignment[None], count)[0]
    assert torch.allclose(means, merged, atol=1e-5)
