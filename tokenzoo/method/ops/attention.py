"""Attention scores of some rows, and PageRank over a layer's attention graph, without ever holding heads x N x N."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def attention_weights(query: Tensor, key: Tensor, rows: Tensor, scaling: float, visible: Tensor | None = None) -> Tensor:
    """Attention weights of some rows, softmax(q Kᵀ · scaling) in float32; causal, or of what is `visible` [R, N].

    `query` [heads, R, d] holds the queries of the rows `rows` [R]; `key` [kv heads, N, d]. Row r sees the columns
    0..rows[r]. Returns [heads, R, N]. Query heads share their group's keys; K is never repeated.
    """
    heads, count, width = query.shape
    # scaled before the product: unscaled ones overflow float16
    logits = torch.bmm((query * scaling).reshape(len(key), -1, width), key.transpose(1, 2)).float()
    logits = logits.view(heads, count, -1)
    hidden = torch.arange(logits.shape[-1], device=rows.device) > rows[:, None] if visible is None else ~visible
    return logits.masked_fill_(hidden, -math.inf).softmax(-1)


def attention_flops(rows: int, tokens: int, heads: int, head_dim: int) -> int:
    """Matrix products of `attention_weights`."""
    return 2 * heads * rows * tokens * head_dim


#: Attention weights that `encoder_attention`, or who asks for `rows_at_once`, holds at a time.
_ELEMENTS = 1 << 25


def rows_at_once(heads: int, tokens: int) -> int:
    """How many rows of attention weights of `heads` heads over `tokens` columns to hold at a time: 128 MB of them."""
    return max(1, _ELEMENTS // (heads * tokens or 1))


def encoder_attention(
    query: Tensor, key: Tensor, scaling: float, queries: str, segments: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Attention without a causal mask on every key, [views, heads, N], float32.

    `query`, `key` [views, heads, N, d]. `queries` "cls": the first row alone; "all": the mean over all rows, in blocks.
    `segments` [N] (windowed attention): rows attend to the columns of their own segment only. `bias` [views, N]: added to the
    logits of each key.
    """
    views, heads, rows, _ = query.shape
    rows = 1 if queries == "cls" else rows
    query, key = (states.flatten(0, 1) for states in ((query[:, :, :rows] * scaling), key))
    block = max(1, min(rows, rows_at_once(len(key), key.shape[1])))
    total = torch.zeros(len(key), key.shape[1], device=key.device)
    for start in range(0, rows, block):
        logits = torch.bmm(query[:, start : start + block], key.transpose(1, 2)).float()
        if bias is not None:
            logits = logits + bias.float().repeat_interleave(heads, 0)[:, None]
        if segments is not None:
            logits = logits.masked_fill(segments[start : start + block, None] != segments, -math.inf)
        total = total + logits.softmax(-1).sum(1)
    return (total / rows).view(views, heads, -1)


def encoder_attention_flops(rows: int, width: int, queries: str) -> int:
    """Matrix products of `encoder_attention` in one view of `rows` rows, all heads together `width` wide."""
    return 2 * (1 if queries == "cls" else rows) * rows * width


@dataclass(frozen=True)
class Blocks:
    """How `pagerank` cuts its attention matrices: rows computed at once, attention weights held at a time.

    A single head's causal part is held in any case, whatever it has.
    """

    rows: int
    elements: int

    def of(self, tokens: int) -> list[tuple[int, int]]:
        """The row blocks (start, stop) of a causal attention matrix; a block needs the columns before `stop` alone."""
        return [(start, min(start + self.rows, tokens)) for start in range(0, tokens, self.rows)]


#: A processor's cache wants small blocks (8 MB); every block of an accelerator is several launches, so there they are few
#: (0.3 GB). One block of rows is one of these, so that a block's own work is no larger than what is held.
CPU_BLOCKS = Blocks(rows=128, elements=1 << 21)
ACCELERATOR_BLOCKS = Blocks(rows=2048, elements=1 << 26)


def _head_chunks(kv_heads: int, group: int, tokens: int, blocks: Blocks) -> Iterator[tuple[slice, slice]]:
    """Slices (of the kv heads, of the query heads in a group) whose attention weights are held together."""
    heads = max(1, blocks.elements // (sum((stop - start) * stop for start, stop in blocks.of(tokens)) or 1))
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
    cut = CPU_BLOCKS if query.device.type == "cpu" else ACCELERATOR_BLOCKS
    borders, side = cut.of(tokens), min(cut.rows, tokens)
    future = torch.ones(side, side, dtype=torch.bool, device=query.device).triu(1)
    query = query.reshape(kv_heads, heads // kv_heads, tokens, width)
    squares = torch.zeros(tokens, device=query.device)
    for kv, part in _head_chunks(kv_heads, heads // kv_heads, tokens, cut):
        blocks = _transition_blocks(query[kv, part].float() * scaling, key[kv].float(), 1 / temperature, borders, future)
        rank = torch.full((len(blocks[0][2]), 1, tokens), 1 / tokens, device=query.device) if blocks else squares[None]
        for _ in range(iterations):
            if len(blocks) == 1:
                moved = torch.bmm(rank, blocks[0][2])
            else:
                moved = torch.zeros_like(rank)
                for start, stop, transition in blocks:
                    moved[..., :stop] += torch.bmm(rank[..., start:stop], transition)
            rank = moved.mul_(1 - damping).add_(damping / tokens) if damping else moved
        squares += rank.square().sum((0, 1))
        del blocks  # before the next heads' are made
    return (squares / heads).sqrt()


def _transition_blocks(
    query: Tensor, key: Tensor, scale: float, borders: list[tuple[int, int]], future: Tensor
) -> list[tuple[int, int, Tensor]]:
    """M of a chunk of heads: query [kv, group, N, d], key [kv, N, d] -> (start, stop, [kv · group, rows, stop]).

    `future`: which columns of a block's own square its rows must not see.
    """
    kv_heads, group, _, width = query.shape
    blocks = []
    for start, stop in borders:
        rows = query[:, :, start:stop].reshape(kv_heads, -1, width)
        logits = torch.bmm(rows, key[:, :stop].transpose(1, 2)).mul_(scale).view(kv_heads * group, stop - start, stop)
        logits[..., start:].masked_fill_(future[: stop - start, : stop - start], -math.inf)
        blocks.append((start, stop, logits.softmax(-1)))
    return blocks


def pagerank_flops(tokens: int, heads: int, head_dim: int, iterations: int = 5) -> int:
    """Matrix products of `pagerank` on a CPU: q Kᵀ once and a row vector times M `iterations` times, block by block.

    An accelerator's larger blocks compute some more weights that the causal mask hides.
    """
    weights = sum((stop - start) * stop for start, stop in CPU_BLOCKS.of(tokens))
    return 2 * heads * weights * (head_dim + iterations)
