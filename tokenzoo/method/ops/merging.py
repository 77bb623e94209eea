"""Merging similar tokens: bipartite matching in rounds, and means over what goes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tokenzoo.lazy import torch
from tokenzoo.method.reduction import Reduction

if TYPE_CHECKING:
    from torch import Tensor


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
    outputs = views * count
    if views > 1:
        assignment = assignment + count * torch.arange(views, device=tokens.device)[:, None]
    flat, precise = assignment.flatten(), torch.promote_types(tokens.dtype, torch.float32)
    # sums and sizes are one piece of memory, so that an accelerator fills it once
    empty = torch.zeros(outputs * (width + 1), device=tokens.device, dtype=precise)
    sums, sizes = empty[: outputs * width].view(outputs, width), empty[outputs * width :]
    sums.index_add_(0, flat, tokens.flatten(0, 1).to(precise))
    sizes.scatter_(0, flat, 1, reduce="add")
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
