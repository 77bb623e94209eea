"""Greedy DPP selection against determinants worked out anew for every pick."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import ops


def by_determinants(kernel: torch.Tensor, count: int) -> list[int]:
    picked: list[int] = []
    for _ in range(count):
        free = [i for i in range(len(kernel)) if i not in picked]
        picked.append(max(free, key=lambda i: (torch.linalg.det(kernel[[*picked, i]][:, [*picked, i]]).item(), -i)))
    return picked


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(0, 6), st.integers(0, 2**16))
def test_always_the_token_that_multiplies_the_determinant_most(tokens: int, count: int, seed: int) -> None:
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed))
    kernel, count = x @ x.T, min(count, tokens)
    assert ops.dpp_map(kernel, count).tolist() == by_determinants(kernel.double(), count)


def test_several_kernels_at_once() -> None:
    x = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
    kernels = x @ x.transpose(1, 2)
    together = ops.dpp_map(kernels, 6)
    assert [row.tolist() for row in together] == [ops.dpp_map(kernel, 6).tolist() for kernel in kernels]


def test_beyond_the_rank_tokens_differ_and_go_by_the_diagonal() -> None:
    """Rank 2: the released recursion takes roots of negative numbers there."""
    direction = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0], [2.0, 1.0]])
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1])[:, None]
    x = direction * scale
    kernel = x @ x.T
    picks = ops.dpp_map(kernel, 5).tolist()
    assert picks[:2] == by_determinants(kernel.double(), 2) and sorted(picks) == [0, 1, 2, 3, 4]
    rest = picks[2:]
    assert rest == sorted(rest, key=lambda i: -kernel[i, i].item())


def test_equal_tokens_do_not_break_it() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2)).repeat(3, 1)
    assert sorted(ops.dpp_map(x @ x.T, 12).tolist()) == list(range(12))
