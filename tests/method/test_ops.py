"""The maths that methods share: against naive references, by properties, and counted to the digit."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tokenzoo import Source
from tokenzoo.method import accounting, ops
from tokenzoo.method.ops import attention
from tokenzoo.method.ops.attention import ACCELERATOR_BLOCKS, CPU_BLOCKS, Blocks

seeds = st.integers(0, 2**16)
quick = settings(max_examples=40, deadline=None)


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    key = key.repeat_interleave(len(query) // len(key), 0)
    logits = query @ key.transpose(1, 2) * scaling
    return logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)


# --- attention and PageRank -----------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 30), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), seeds)
def test_attention_weights_of_some_rows(tokens: int, heads: tuple[int, int], seed: int) -> None:
    query, key = normal(seed, heads[0], tokens, 8), normal(seed + 1, heads[1], tokens, 8)
    rows = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: tokens // 2 + 1]
    expected = naive_weights(query, key, 0.3).softmax(-1)[:, rows]
    assert torch.allclose(ops.attention_weights(query[:, rows], key, rows, 0.3), expected, atol=1e-6)
    flops = counted(lambda: ops.attention_weights(query[:, rows], key, rows, 0.3))
    assert flops == ops.attention_flops(len(rows), tokens, heads[0], 8)


@pytest.mark.parametrize("tokens", [1, 2, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1), (6, 2)])
@pytest.mark.parametrize("blocks", [Blocks(128, 1), Blocks(128, 1 << 15), CPU_BLOCKS, ACCELERATOR_BLOCKS], ids=str)
def test_pagerank_equals_the_naive_one(tokens: int, heads: tuple[int, int], blocks: Blocks, monkeypatch) -> None:
    monkeypatch.setattr(attention, "CPU_BLOCKS", blocks)
    query, key = 3 * normal(tokens, heads[0], tokens, 8), normal(tokens + 1, heads[1], tokens, 8)
    move = (naive_weights(query.double(), key.double(), 0.35) / 0.1).softmax(-1)
    rank = torch.full((heads[0], 1, tokens), 1 / tokens, dtype=torch.double)
    for _ in range(5):
        rank = rank @ move
    expected = rank.square().mean(0).sqrt()[0]
    assert torch.allclose(ops.pagerank(query, key, 0.35).double(), expected, rtol=1e-4, atol=1e-7)
    assert counted(lambda: ops.pagerank(query, key, 0.35)) == ops.pagerank_flops(tokens, heads[0], 8)
    assert counted(lambda: ops.pagerank(query, key, 0.35, iterations=2)) == ops.pagerank_flops(tokens, heads[0], 8, 2)


def test_pagerank_survives_hidden_logits_far_above_the_visible_ones() -> None:
    """The row maximum is taken over visible columns: a masked giant must not turn the row to zero."""
    query = torch.tensor([[[1.0], [1.0], [1.0]]])
    key = torch.tensor([[[0.0], [1.0], [1e4]]])
    scores = ops.pagerank(query, key, 1.0)
    assert scores.isfinite().all() and scores.sum() == pytest.approx(1)


@quick
@given(st.integers(1, 40), seeds)
def test_pagerank_is_a_distribution_for_one_head(tokens: int, seed: int) -> None:
    scores = ops.pagerank(normal(seed, 1, tokens, 4), normal(seed + 1, 1, tokens, 4), 0.5)
    assert scores.sum() == pytest.approx(1, rel=1e-4)


def test_pagerank_of_half_precision_is_finite_and_float32() -> None:
    scores = ops.pagerank(normal(0, 4, 50, 8).bfloat16(), normal(1, 2, 50, 8).bfloat16(), 0.35)
    assert scores.dtype == torch.float32 and scores.isfinite().all()


def test_scores_of_large_queries_and_keys_do_not_overflow_half_precision() -> None:
    query, key = (100 * normal(seed, heads, 20, 64).half() for seed, heads in ((0, 2), (1, 1)))
    assert (query[0] @ key[0].T).isinf().any(), "unscaled products overflow"
    rows = torch.arange(20)
    scaling = 64**-0.5
    weights = ops.attention_weights(query, key, rows, scaling)
    assert weights.isfinite().all()
    assert torch.allclose(weights, naive_weights(query.float(), key.float(), scaling).softmax(-1), atol=0.05)
    assert ops.pagerank(query, key, scaling).isfinite().all()


def test_pagerank_holds_one_head_at_a_time() -> None:
    """9408 tokens: the peak beyond one head's causal half (177 MB) stays below 0.4 GB, however many heads."""
    code = (
        "import resource, torch\nfrom tokenzoo import ops\n"
        "torch.set_num_threads(1)\nq, k = torch.randn(2, 9408, 16), torch.randn(1, 9408, 16)\n"
        "ops.pagerank(q[:, :64], k[:, :64], .25)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ops.pagerank(q, k, .25)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400 * 1024


# --- merging --------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 3), st.integers(0, 24), st.integers(-3, 30), seeds)
def test_merging_has_exact_sizes_and_conserves_the_weighted_mean(views: int, tokens: int, remove: int, seed: int) -> None:
    metric, x = normal(seed, views, tokens, 6), normal(seed + 1, views, tokens, 5).double()
    match = ops.bipartite_match(metric, remove)
    left = tokens - max(0, min(remove, tokens // 2))
    assert match.anchors.shape == (views, left) and match.assignment.shape == (views, tokens)
    merged = ops.mean_by_assignment(x, match.assignment, left)
    sizes = torch.zeros(views, left).scatter_add_(1, match.assignment, torch.ones(views, tokens))
    assert torch.equal(match.assignment.gather(1, match.anchors), torch.arange(left).expand(views, -1))
    assert (sizes >= 1).all()
    assert torch.allclose((merged * sizes[..., None]).sum(1), x.sum(1), atol=1e-9)
    rounds = [remove] if left < tokens else []
    assert counted(lambda: ops.bipartite_match(metric, remove)) == views * ops.merge_flops(tokens, 6, rounds)


@quick
@given(st.integers(2, 24), st.integers(1, 12), seeds)
def test_merged_order_is_sources_by_falling_similarity_then_destinations(tokens: int, remove: int, seed: int) -> None:
    metric = normal(seed, 1, tokens, 6)
    match = ops.bipartite_match(metric, remove)
    unit = metric[0] / metric[0].norm(dim=-1, keepdim=True)
    best = (unit[::2] @ unit[1::2].T).amax(1)
    alone = len(best) - min(remove, tokens // 2)
    sources, destinations = match.anchors[0, :alone], match.anchors[0, alone:]
    assert (sources % 2 == 0).all() and destinations.tolist() == list(range(1, tokens, 2))
    kept = best[sources // 2]
    assert (kept.diff() <= 1e-6).all()
    merged = [best[i].item() for i in range(len(best)) if 2 * i not in sources]
    assert not len(kept) or min(merged) >= kept.max() - 1e-6


@pytest.mark.parametrize("remove", [0, -1, -100])
def test_nothing_to_merge_returns_the_input(remove: int) -> None:
    """The released code returns nothing here, and fails."""
    match = ops.bipartite_match(normal(0, 2, 7, 3), remove)
    assert torch.equal(ops.mean_by_assignment(normal(1, 2, 7, 3), match.assignment, 7), normal(1, 2, 7, 3))


def test_a_zero_vector_is_no_nan() -> None:
    match = ops.bipartite_match(torch.zeros(1, 4, 3), 2)
    assert sorted(set(match.assignment[0].tolist())) == [0, 1]


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), seeds)
def test_views_merge_as_they_would_alone(sizes: list[int], seed: int) -> None:
    x, metric = normal(seed, sum(sizes), 4), normal(seed + 1, sum(sizes), 3)
    views = list(torch.arange(sum(sizes)).split(sizes))

    def removals(tokens: int) -> list[int]:
        return [tokens // 2, tokens // 4]

    together = ops.merge_views(x, metric, views, removals)
    alone = [ops.merge_views(x[view], metric[view], [torch.arange(len(view))], removals) for view in views]
    assert torch.allclose(together.features, torch.cat([part.features for part in alone]), atol=1e-6)
    first = [view[:1].sum() for view in views]
    assert torch.equal(together.anchors, torch.cat([p.anchors + f for p, f in zip(alone, first, strict=True)]))
    counts = [len(part.features) for part in alone]
    assert [int((together.anchors < end).sum()) for end in torch.tensor(sizes).cumsum(0)] == torch.tensor(counts).cumsum(
        0
    ).tolist()
    flops = counted(lambda: ops.merge_views(x, metric, views, removals))
    assert flops == sum(ops.merge_flops(size, 3, [r for r in removals(size) if r]) for size in sizes)


def test_merged_keys_go_along() -> None:
    """The second round matches by the merged keys, not by the merged features."""
    x, keys = normal(0, 16, 4), normal(1, 16, 4)
    views = [torch.arange(16)]
    both = ops.merge_views(x, keys, views, lambda tokens: [8, 4])
    first = ops.bipartite_match(keys[None], 8)
    second = ops.bipartite_match(ops.mean_by_assignment(keys[None], first.assignment, 8), 4)
    expected = ops.mean_by_assignment(ops.mean_by_assignment(x[None], first.assignment, 8), second.assignment, 4)
    assert torch.allclose(both.features, expected[0])


# --- picking, pooling, counts ---------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(-1, 35))
def test_top_indices_keep_order_and_take_the_first_of_equals(scores: list[int], count: int) -> None:
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: max(count, 0)])
    assert ops.top_indices(torch.tensor(scores, dtype=torch.float), count).tolist() == expected


@quick
@given(st.integers(0, 200), st.integers(0, 200))
def test_uniform_indices_are_distinct_and_spread(total: int, count: int) -> None:
    count = min(count, total)
    indices = ops.uniform_indices(total, count).tolist()
    assert len(set(indices)) == len(indices) == count and indices == sorted(indices)
    assert all(0 <= index < total for index in indices)
    gaps = {after - before for before, after in pairwise(indices)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), seeds)
def test_average_pool(height: int, width: int, stride: int, seed: int) -> None:
    x = normal(seed, 2, height * width, 3)
    plane = x.view(2, height, width, 3)
    expected = [
        plane[:, row : row + stride, column : column + stride].mean((1, 2))
        for row in range(0, height, stride)
        for column in range(0, width, stride)
    ]
    assert torch.allclose(ops.average_pool(x, (height, width), stride), torch.stack(expected, 1), atol=1e-6)


def test_newlines_that_a_reduction_before_the_projector_leaves() -> None:
    assert accounting.structural_left(Source("image", (4, 9), 3, (4, 4, 4))) == 0
    assert accounting.structural_left(Source("video", (4, 4), 1, (16, 16))) == 1
    assert accounting.structural_left(Source("image", (4,), 2)) == 2


def test_the_closed_forms_need_no_torch() -> None:
    code = (
        "import sys; from tokenzoo.method import ops; ops.pagerank_flops(9, 2, 4); ops.merge_flops(9, 4, [4]);"
        "ops.attention_flops(1, 9, 2, 4); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
