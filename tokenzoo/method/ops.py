"""Pure tensor maths that methods share: attention scores, PageRank, bipartite merging, picking and pooling.

Nothing here knows models, hooks or methods. Functions named `*_flops` are the closed forms of the matrix products
(2 per multiply-add) that their partner executes; they, and everything else on the path of `tokenzoo cost`, need no
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tokenzoo.lazy import torch
from tokenzoo.method.reducer import Reduction
from tokenzoo.method.workload import Source

if TYPE_CHECKING:
    from torch import Tensor

# --- token counts ---------------------------------------------------------------------------------------------------


def token_schedule(entry: int, kept: Mapping[int, int], layers: int) -> list[int]:
    """Visual tokens entering each of `layers` decoder layers: `entry` at first, after layer i at most `kept[i]`."""
    counts, present = [], entry
    for layer in range(layers):
        counts.append(present)
        present = min(present, kept.get(layer, present))
    return counts


def structural_left(source: Source) -> int:
    """Structural tokens (newlines) left where a source was reduced before the projector: without the tile or pooling
    grid, row newlines separate nothing; a single one that ends the source stays."""
    return source.structural if source.structural <= 1 or source.before_projector == source.view_tokens else 0


def acting_layers(schedule: Sequence[int], kept: Mapping[int, int]) -> list[int]:
    """The layers of `kept` after which a score is needed: something is dropped there, but not everything."""
    return [layer for layer, count in sorted(kept.items()) if layer < len(schedule) and 0 < count < schedule[layer]]


# --- attention ------------------------------------------------------------------------------------------------------


def attention_weights(query: Tensor, key: Tensor, rows: Tensor, scaling: float) -> Tensor:
    """Causal attention weights of some rows, softmax(q Kᵀ · scaling) in float32.

    `query` [heads, R, d] holds the queries of the rows `rows` [R]; `key` [kv heads, N, d]. Row r sees the columns
    0..rows[r]. Returns [heads, R, N]. Query heads share their group's keys; K is never repeated.
    """
    heads, count, width = query.shape
    # scaled before the product: unscaled ones overflow float16
    logits = torch.bmm((query * scaling).reshape(len(key), -1, width), key.transpose(1, 2)).float()
    logits = logits.view(heads, count, -1)
    hidden = torch.arange(logits.shape[-1], device=rows.device) > rows[:, None]
    return logits.masked_fill_(hidden, -math.inf).softmax(-1)


def attention_flops(rows: int, tokens: int, heads: int, head_dim: int) -> int:
    """Matrix products of `attention_weights`."""
    return 2 * heads * rows * tokens * head_dim


#: Rows of the attention matrix that `pagerank` computes at once, and the attention weights it holds at a time
#: (8 MB in float32) unless a single head has more.
_PAGERANK_ROWS = 128
_PAGERANK_ELEMENTS = 1 << 21


def _row_blocks(tokens: int) -> list[tuple[int, int]]:
    """The row blocks (start, stop) of a causal attention matrix; a block needs the columns before `stop` alone."""
    return [(start, min(start + _PAGERANK_ROWS, tokens)) for start in range(0, tokens, _PAGERANK_ROWS)]


def _head_chunks(kv_heads: int, group: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Slices (of the kv heads, of the query heads in a group) whose attention weights are held together."""
    heads = max(1, _PAGERANK_ELEMENTS // (sum((stop - start) * stop for start, stop in _row_blocks(tokens)) or 1))
    if heads >= group:
        for kv in range(0, kv_heads, heads // group):
            yield slice(kv, kv + heads // group), slice(0, group)
    else:
        for kv in range(kv_heads):
            for first in range(0, group, heads):
                yield slice(kv, kv + 1), slice(first, min(first + heads, group))


def pagerank(
    query: Tensor,
    key: Tensor,
    scaling: float,
    temperature: float = 0.1,
    iterations: int = 5,
    damping: float = 0.0,
) -> Tensor:
    """Importance of every token as PageRank over the attention graph (AIM, arXiv 2412.03248).

    `query` [heads, N, d], `key` [kv heads, N, d]. Per head: M = softmax(q Kᵀ · scaling / temperature), causal, in
    float32; p₀ = 1/N; `iterations` times p = (1 - damping) p M + damping / N. Returns sqrt(mean over heads of p²),
    [N] in float32. Holds one head's causal half of M at a time, or a few small heads', never heads × N × N.
    """
    (heads, tokens, width), kv_heads = query.shape, len(key)
    # many CPUs emulate products in half precision, a hundred times slower; none is slow in float32
    precision = torch.float32 if query.device.type == "cpu" else query.dtype
    query = query.reshape(kv_heads, heads // kv_heads, tokens, width)
    squares = torch.zeros(tokens, device=query.device)
    for kv, part in _head_chunks(kv_heads, heads // kv_heads, tokens):
        blocks = _transition_blocks(query[kv, part].to(precision) * scaling, key[kv].to(precision), 1 / temperature)
        rank = torch.full((len(blocks[0][2]), 1, tokens), 1 / tokens, device=query.device) if blocks else squares[None]
        for _ in range(iterations):
            moved = torch.zeros_like(rank)
            for start, stop, transition in blocks:
                moved[..., :stop] += torch.bmm(rank[..., start:stop], transition)
            rank = moved.mul_(1 - damping).add_(damping / tokens) if damping else moved
        squares += rank.square().sum((0, 1))
        del blocks  # before the next heads' are made
    return (squares / heads).sqrt()


def _transition_blocks(query: Tensor, key: Tensor, scale: float) -> list[tuple[int, int, Tensor]]:
    """M of a chunk of heads: query [kv, group, N, d], key [kv, N, d] -> (start, stop, [kv · group, rows, stop])."""
    kv_heads, group, tokens, width = query.shape
    future = torch.ones(_PAGERANK_ROWS, _PAGERANK_ROWS, dtype=torch.bool, device=query.device).triu(1)
    blocks = []
    for start, stop in _row_blocks(tokens):
        rows = query[:, :, start:stop].reshape(kv_heads, -1, width)
        logits = torch.bmm(rows, key[:, :stop].transpose(1, 2)).float().mul_(scale)
        logits = logits.view(kv_heads * group, stop - start, stop)
        logits[..., start:].masked_fill_(future[: stop - start, : stop - start], -math.inf)
        blocks.append((start, stop, logits.softmax(-1)))
    return blocks


def pagerank_flops(tokens: int, heads: int, head_dim: int, iterations: int = 5) -> int:
    """Matrix products of `pagerank`: q Kᵀ once and a row vector times M `iterations` times, block by block."""
    weights = sum((stop - start) * stop for start, stop in _row_blocks(tokens))
    return 2 * heads * weights * (head_dim + iterations)


# --- merging --------------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """Which of t tokens become which of the t - r outputs.

    `assignment` [views, t]: the output each token goes into; `anchors` [views, t - r]: the token each output stands
    for, which is the token itself where nothing was merged into it and the destination otherwise.
    """

    assignment: Tensor
    anchors: Tensor


def bipartite_match(metric: Tensor, remove: int) -> Match:
    """Pair off similar tokens (ToMe's bipartite soft matching as AIM uses it, arXiv 2412.03248).

    `metric` [views, t, m]. Even positions are sources, odd ones destinations; each source takes the destination of
    highest cosine similarity (in float32), and the `remove` (at most t // 2) most similar sources merge. Output
    order: the other sources by descending similarity, then all destinations. Ties go to the first. Where `remove`
    <= 0 nothing moves.
    """
    views, tokens, _ = metric.shape
    remove = min(remove, tokens // 2)
    if remove <= 0:
        everything = torch.arange(tokens, device=metric.device).expand(views, -1)
        return Match(everything, everything)
    metric = torch.nn.functional.normalize(metric.float(), dim=-1)
    best, destination = torch.bmm(metric[:, ::2], metric[:, 1::2].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, alone = order[:, :remove], order[:, remove:]
    outputs = torch.arange(tokens - remove, device=metric.device).expand(views, -1)
    assignment = outputs.new_empty(views, tokens)
    assignment[:, 1::2] = outputs[:, alone.shape[1] :]
    sources = outputs.new_empty(views, order.shape[1])
    sources.scatter_(1, alone, outputs[:, : alone.shape[1]])
    sources.scatter_(1, merged, destination.gather(1, merged) + alone.shape[1])
    assignment[:, ::2] = sources
    odd = torch.arange(1, tokens, 2, device=metric.device).expand(views, -1)
    return Match(assignment, torch.cat([2 * alone, odd], dim=1))


def mean_by_assignment(tokens: Tensor, assignment: Tensor, count: int) -> Tensor:
    """The plain mean of the tokens of each output: tokens [views, t, c], assignment [views, t] -> [views, count, c]."""
    views, _, width = tokens.shape
    flat = (assignment + count * torch.arange(views, device=tokens.device)[:, None]).flatten()
    precise = torch.promote_types(tokens.dtype, torch.float32)
    sums = torch.zeros(views * count, width, device=tokens.device, dtype=precise)
    sums.index_add_(0, flat, tokens.flatten(0, 1).to(precise))
    sizes = torch.zeros(views * count, device=tokens.device, dtype=precise)
    sizes.index_add_(0, flat, torch.ones_like(flat, dtype=precise))
    return (sums / sizes[:, None]).to(tokens.dtype).view(views, count, width)


def merge_views(
    features: Tensor, metric: Tensor | None, views: Sequence[Tensor], removals: Callable[[int], Sequence[int]]
) -> Reduction:
    """Merge the tokens of each view by rounds of `bipartite_match`, views of equal size in one call.

    `features` [tokens, c]; `metric` [tokens, m], merged along (None: the features themselves); `views` hold each
    view's token indices; `removals(t)` says how many tokens each round takes from a view of t tokens. The outputs
    stand view by view.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = [(features[:0], views[0][:0], views[0][:0])] * len(views)
    for size in {len(view) for view in views if len(view)}:
        numbers = [number for number, view in enumerate(views) if len(view) == size]
        index = torch.stack([views[number] for number in numbers])
        merged = features[index]
        keys = merged if metric is None else metric[index]
        assignment = anchors = torch.arange(size, device=index.device).expand(len(index), -1)
        for remove in removals(size):
            match = bipartite_match(keys, remove)
            merged = mean_by_assignment(merged, match.assignment, match.anchors.shape[1])
            keys = merged if metric is None else mean_by_assignment(keys, match.assignment, match.anchors.shape[1])
            assignment = match.assignment.gather(1, assignment)
            anchors = anchors.gather(1, match.anchors)
        for row, number in enumerate(numbers):
            parts[number] = merged[row], index[row][anchors[row]], assignment[row]
    into = torch.full((len(features),), -1, device=features.device)
    offset = 0
    for view, (merged, _, assignment) in zip(views, parts, strict=True):
        into[view] = assignment + offset
        offset += len(merged)
    return Reduction(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), into)


def merge_flops(tokens: int, width: int, removals: Sequence[int]) -> int:
    """Matrix products of one view's rounds in `merge_views`: the similarities of sources and destinations."""
    flops = 0
    for remove in removals:
        flops += 2 * (tokens - tokens // 2) * (tokens // 2) * width
        tokens -= max(0, min(remove, tokens // 2))
    return flops


# --- picking and pooling --------------------------------------------------------------------------------------------


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of scores [tokens], ascending; of equal scores the first ones are taken."""
    return scores.argsort(descending=True, stable=True)[: max(count, 0)].sort().values


def uniform_indices(total: int, count: int) -> Tensor:
    """`count` of 0..total-1 at equal distances, ascending: the middles of `count` equal intervals."""
    return (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))


def average_pool(features: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Mean of each stride × stride window, border windows over what lies inside the grid.

    `features` [views, height · width, c] -> [views, ceil(height / stride) · ceil(width / stride), c].
    """
    planes = features.transpose(1, 2).unflatten(2, grid).float()
    pooled = torch.nn.functional.avg_pool2d(planes, stride, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2).to(features.dtype)
