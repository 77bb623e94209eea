"""Principal directions from a random start: torch's own, and the exact ones where there are no more."""

from __future__ import annotations

import pytest
import torch

from tokenzoo import ops


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
def test_the_start_is_that_of_torch(shape: tuple[int, int]) -> None:
    x = normal(0, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = torch.pca_lowrank(x, 5)[2]
    assert torch.allclose(ops.principal_directions(x, 5, 7).abs(), theirs.abs(), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_of_a_matrix_of_low_rank_they_are_exact(shape: tuple[int, int]) -> None:
    x = normal(1, shape[0], 3) @ (normal(2, 3, shape[1]) * torch.tensor([[9.0], [3.0], [1.0]]))
    right = torch.linalg.svd((x - x.mean(0)).double()).Vh[:3].T
    for seed in (0, 1):
        ours = ops.principal_directions(x, 3, seed)
        assert torch.allclose(ours.abs().double(), right.abs(), atol=1e-4)
        assert torch.allclose(ours.T @ ours, torch.eye(3), atol=1e-5)


def test_another_seed_finds_others_and_the_global_generator_is_left_alone() -> None:
    x = normal(3, 60, 50)
    state = torch.get_rng_state()
    one, again, other = (ops.principal_directions(x, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.allclose(one.abs(), other.abs(), atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
