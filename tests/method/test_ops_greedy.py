"""Greedy choices against their definitions, word for word, one comparison at a time; and none of them waits for a device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo.method import ops

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def first_best(candidates: list[int], value) -> int:
    """The first of the candidates with the largest value."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if value(candidate) > value(best):
            best = candidate
    return best


def farthest(distance: list[list[float]], count: int) -> list[int]:
    everyone = list(range(len(distance)))
    picked: list[int] = []
    while len(picked) < count:
        seen = picked or everyone
        free = [i for i in everyone if i not in picked]
        picked.append(first_best(free, lambda i, seen=seen: min((distance[s][i] for s in seen if s != i), default=0.0)))
    return picked


@quick
@given(st.integers(1, 20), st.data(), seeds)
def test_farthest_first(tokens: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, tokens))
    distance = normal(seed, 2, tokens, tokens)  # neither symmetric nor positive: the definition asks for neither
    ours = ops.farthest_first(distance, count)
    assert ours.tolist() == [farthest(one.tolist(), count) for one in distance]
    assert torch.equal(ops.farthest_first(distance[0], count), ours[0])


def test_farthest_first_picks_nothing_twice_and_the_first_of_equals() -> None:
    distance = 1 - ops.cosine_similarity(torch.eye(3).repeat(2, 1))
    assert ops.farthest_first(distance, 6).tolist() == [0, 1, 2, 3, 4, 5]


def covering(values: torch.Tensor, count: int, weight: torch.Tensor, bonus: torch.Tensor) -> list[int]:
    picked: list[int] = []
    while len(picked) < count:
        covered = [max([0.0, *(values[i, s].item() for s in picked)]) for i in range(len(values))]
        gain = {
            j: weight[j].item() * sum(max(0.0, values[i, j].item() - covered[i]) for i in range(len(values))) + bonus[j].item()
            for j in range(values.shape[1])
            if j not in picked
        }
        picked.append(first_best(list(gain), gain.__getitem__))
    return picked


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["plain", "weight", "bonus"]), st.data(), seeds)
def test_max_coverage(rows: int, tokens: int, kind: str, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, tokens))
    values = normal(seed, 2, rows, tokens).double()
    number = normal(seed + 1, 2, tokens).double().abs() + 0.1
    ours = ops.max_coverage(values, count, **({} if kind == "plain" else {kind: number}))
    for view in range(2):
        one, zero = torch.ones(tokens), torch.zeros(tokens)
        weight, bonus = (number[view] if kind == "weight" else one), (number[view] if kind == "bonus" else zero)
        assert ours[view].tolist() == covering(values[view], count, weight, bonus)


def test_max_coverage_picks_nothing_twice_where_nothing_is_left_to_cover() -> None:
    assert ops.max_coverage(torch.eye(2).repeat(1, 2), 4).tolist() == [0, 1, 2, 3]


@quick
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), seeds)
def test_views_are_picked_from_in_groups_as_one_by_one(sizes: list[int], seed: int) -> None:
    views = list(torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes))
    left, score = [(size + 1) // 2 for size in sizes], normal(seed, sum(sizes))
    calls: list[int] = []

    def best(index: torch.Tensor, count: int) -> torch.Tensor:
        calls.append(len(index))
        return score[index].argsort(descending=True)[:, :count]

    kept = ops.pick_views(views, left, best)
    one_by_one = [view[score[view].argsort(descending=True)[:count]] for view, count in zip(views, left, strict=True)]
    assert torch.equal(kept, torch.cat(one_by_one))
    assert sum(calls) == len(views) and len(calls) == len(set(sizes))


@pytest.mark.parametrize(
    "pick",
    [
        lambda x: ops.farthest_first(1 - ops.cosine_similarity(x), 9),
        lambda x: ops.max_coverage(ops.cosine_similarity(x), 9, weight=x[..., 0], bonus=x[..., 1]),
    ],
)
def test_no_pick_waits_for_the_device(pick) -> None:
    """On the meta device no value can be read."""
    assert pick(torch.empty(3, 20, 8, device="meta")).shape == (3, 9)
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty(1, device="meta").item()


def test_cosines_of_half_precision_are_made_in_float32() -> None:
    features = normal(3, 5, 16).half()
    cosines = ops.cosine_similarity(features)
    assert cosines.dtype == torch.float32
    torch.testing.assert_close(cosines.diagonal(), torch.ones(5))
