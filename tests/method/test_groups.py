"""Budgets shared out among groups, and each group's best, against loops over the groups."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import ops

quick = settings(max_examples=80, deadline=None)


@quick
@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 6)), min_size=1, max_size=5), st.data())
def test_apportion_takes_the_next_token_where_it_is_most_missing(groups: list[tuple[int, float]], data: st.DataObject) -> None:
    sizes, shares = (list(values) for values in zip(*groups, strict=True))
    total = data.draw(st.integers(0, sum(sizes)))
    least = data.draw(st.integers(0, 1))
    counts = [0] * len(sizes)
    for _ in range(total):
        free = [g for g in range(len(sizes)) if counts[g] < sizes[g]]
        counts[min(free, key=lambda g: (counts[g] >= least, counts[g] - shares[g] if counts[g] >= least else 0, g))] += 1
    exact = torch.tensor(shares, dtype=torch.double)
    assert ops.apportion(exact, sizes, total, least).tolist() == counts


def test_shares_that_add_up_get_the_largest_remainders() -> None:
    assert ops.apportion(torch.tensor([2.6, 1.9, 0.5]), [9, 9, 9], 5).tolist() == [3, 2, 0]


@quick
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_top_of_groups(sizes: list[int], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, size)) for size in sizes]
    total = sum(sizes)
    scores = [data.draw(st.integers(0, 3)) for _ in range(total)]  # with ties
    group = data.draw(st.permutations([g for g, size in enumerate(sizes) for _ in range(size)]))
    expected = []
    for g, count in enumerate(counts):
        expected += sorted((i for i in range(total) if group[i] == g), key=lambda i: (-scores[i], i))[:count]
    given = torch.tensor(scores), torch.tensor(group), torch.tensor(counts)
    assert ops.top_of_groups(*given).tolist() == ops.top_of_groups(*given, sum(counts)).tolist() == expected
    filled = ops.top_of_groups(*given, total).tolist()
    assert filled[: len(expected)] == expected and sorted(filled) == list(range(total))
