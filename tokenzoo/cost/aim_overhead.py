"""The overhead that AIM prints for itself: the formulas that give its four numbers.

Merging 88.25 + pruning 4.18 = 92.43 GFLOPs on Qwen2-7B with 32 frames. The paper gives no formula; these agree at the
printed digits and are LLM-Viewer's own per-element prices. They are an accounting, not what runs: `exact` counts the
products that the method executes (frame by frame 2.75 GFLOPs for the same merging).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tokenzoo.cost.published import Cell, Paper, recompute
from tokenzoo.method.workload import Architecture


def merging_flops(tokens: int, rounds: Sequence[int], hidden: int) -> int:
    """Bipartite merging of `tokens` tokens that removes `rounds[i]` in round i.

    Each round: 2 per multiply-add of the sources x destinations similarities; 3 per element to normalise (square, sum,
    divide); 2 per element of each merged token (add, divide) for the mean.
    """
    flops = 0
    for removed in rounds:
        sources = (tokens + 1) // 2
        flops += 2 * sources * (tokens - sources) * hidden + 3 * tokens * hidden + 2 * removed * hidden
        tokens -= removed
    return flops


def pruning_flops(tokens: Sequence[int], decoder: Architecture, iterations: int = 5) -> int:
    """PageRank in every pruning layer over its `tokens` rows: per head and pair 1 to scale, 5 for the softmax, 2 for
    each iteration."""
    return sum((1 + 5 + 2 * iterations) * decoder.heads * rows**2 for rows in tokens)


def overhead_gflops(schedule: Sequence[int], text_tokens: int, decoder: Architecture, frames: int = 1) -> dict[str, float]:
    """AIM's overhead in GFLOPs for its main row: 6272 tokens merged to 1568 in two halvings, then pruned.

    `schedule` is the row's visual tokens per layer. `frames` = 1 is the printed accounting, one joint match over all
    tokens; 32 is the match frame by frame, as executed.
    """
    entered = 4 * schedule[0]
    share = entered // frames
    merging = frames * merging_flops(share, (share // 2, share // 4), decoder.hidden)
    rows = [before + text_tokens for before, after in pairwise(schedule) if after < before]
    pruning = pruning_flops(rows, decoder)
    return {"token_merging": merging / 1e9, "token_pruning": pruning / 1e9, "total": (merging + pruning) / 1e9}


def recompute_overhead(paper: Paper) -> list[tuple[str, Cell, float | None]]:
    """For each printed overhead number: its name, the cell, and the value with the merging as executed."""
    from tokenzoo.zoo.plugins import load_zoo

    row = next(row for row in paper.rows if row.table == "video_benchmarks" and row.name == "AIM")
    done = recompute(paper, row, load_zoo().build(row.method))
    schedule, text, decoder = done.cost.visual_tokens, row.workload.text_tokens, row.model.decoder
    computed = overhead_gflops(schedule, text, decoder)
    executed = overhead_gflops(schedule, text, decoder, frames=len(row.workload.sources[0].view_tokens))
    computed["llm_inference"] = done.cost.flops / 1e9
    printed = paper.extras["overhead_gflops"]
    return [(name, Cell(str(value), computed[name]), executed.get(name)) for name, value in printed.items()]
