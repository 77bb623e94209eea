"""PruneSID: groups by principal components, distinct tokens of each (Fang et al., ICLR 2026, arXiv 2603.09480)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


class View(NamedTuple):
    """One view: its tokens x [N, C], the CLS token's attention on them [N] (None: there is none), and how many are left."""

    x: Tensor
    attention: Tensor | None
    count: int


@dataclass
class PruneSID(TokenReducer):
    """Of each view of N tokens leave T = round(retention · N), group by group: distinct ones first, then by score.

    **Groups**: of the q = T // 4 leading directions V [N, q] of sigmoid(x) [C, N] (`ops.principal_directions`, from a random
    start), token j belongs to argmax_c |V_jc|. **Score**: the CLS token's attention. **Survivors** of a group: the best
    token, then always the best of those whose cosine with none of them is above T / 32 · (mean cosine of all pairs).
    **Quotas** d_g of a group of n with s survivors: at least 1, at most min(5 · ceil(T / 64), n, s) (all groups one more
    until these reach T), shared out by Σ s, rounded cumulatively, then groups with the most survivors are filled up.

    With a CLS token: before the projector, the view's CLS token first, which counts as one of T. Without one, and where
    the model joins patches on the way (InternVL, pooled videos): before the LLM, the authors' form for Qwen2-VL, at least
    16 tokens (views of 16 or fewer stay whole), q = max(T // 4, 4), the score is |V_jg|, the threshold max(18 T / N, 1) ·
    Σ_{i<=j} cos_ij / N²; more than 150 tokens come in raster order.

    On purpose: the start is drawn by `seed` on the CPU, the same for every view, as an exact decomposition gives other
    groups (57 to 84 % agree, and other seeds share 72 % of the tokens). Equal numbers of survivors: the first group first.
    The released code writes tiles' tokens to the wrong places of the grid; here tiles follow each other. T below 4 works.
    A video's frames are views. Where positions are kept, the CLS token has the first patch's.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens left.")] = 0.2222
    seed: Annotated[int, Field(ge=0, description="Start of the decomposition: another seed, other groups.")] = 0
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "prunesid"
    whole_views: ClassVar[bool] = True

    def early(self, source: Source, architecture: Architecture) -> bool:
        return architecture.has_cls and architecture.encoder_merge == 1 and not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        least = 1 if self.early(source, architecture) else 16
        return [min(tokens, max(least, round(self.retention * tokens))) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,) if architecture.has_cls and architecture.encoder_merge == 1 else ()

    def reduce(self, tokens: VisualTokens) -> Tensor | Reduction:
        assert tokens.left is not None and tokens.architecture is not None
        attention = tokens.encoder_saliency().sum(0) if tokens.early else None
        views, left = tokens.views(), tokens.left
        reduced = [number for number, view in enumerate(views) if tokens.early or left[number] < len(view)]
        parts = [View(tokens.features[views[n]], None if attention is None else attention[views[n]], left[n]) for n in reduced]
        chosen = dict(zip(reduced, self.choose(parts), strict=True))
        kept = [view[chosen[number]] if number in chosen else view for number, view in enumerate(views)]
        if not tokens.early:
            return torch.cat(kept)
        cls = tokens.cls_features(tokens.architecture.feature_layer).split(1)
        features = [part for pair in zip(cls, (tokens.features[view] for view in kept), strict=True) for part in pair]
        anchors = [part for first, view in zip(views, kept, strict=True) for part in (first[:1], view)]
        return Reduction(torch.cat(features), torch.cat(anchors))

    def choose(self, views: Sequence[View]) -> list[Tensor]:
        """The kept tokens of each view, in their order.

        Each decision hangs on the one before, so the host takes them; it reads what it needs of all views at once.
        """
        compared, sizes = [self.compare(view) for view in views], [len(view.x) for view in views]
        ranked = torch.cat([tokens for tokens, _ in compared], 1).cpu().split(sizes, 1)
        rivals = torch.cat([rival.flatten() for _, rival in compared]).cpu().split([size**2 for size in sizes])
        chosen = [torch.tensor(self.decide(*view), dtype=torch.long) for view in zip(views, ranked, rivals, strict=True)]
        return list(torch.cat(chosen).to(views[0].x.device).split([len(kept) for kept in chosen]))

    def compare(self, view: View) -> tuple[Tensor, Tensor]:
        """The tokens of a view by falling score and the group of each [2, N], and in that order which are rivals [N, N]."""
        x, attention, count = view
        total, rank = len(x), self.rank(count, *x.shape, attention is not None)
        share = ops.principal_directions(x.float().sigmoid().T, rank, self.seed).abs()
        strength, group = share.max(1)
        score = strength if attention is None else attention
        cosine = ops.cosine_similarity(x)
        pairs = cosine.triu(0 if attention is None else 1).sum() / (total**2 if attention is None else total * (total - 1) / 2)
        threshold = pairs * (max(18 * count / total, 1) if attention is None else count / 32)
        order = score.argsort(descending=True, stable=True)
        rival = (cosine > threshold) & (group[:, None] == group)
        return torch.stack([order, group[order]]), rival[order][:, order]

    def decide(self, view: View, ranked: Tensor, rival: Tensor) -> list[int]:
        """The kept tokens of a view as it was compared, on the CPU; with a CLS token one less than are left."""
        has_cls, count = view.attention is not None, view.count
        groups: list[tuple[list[int], list[int]]] = [([], []) for _ in range(self.rank(count, *view.x.shape, has_cls))]
        distinct = first_come(rival.view(len(view.x), -1)).tolist()
        for (token, number), survives in zip(ranked.T.tolist(), distinct, strict=True):
            groups[number][not survives].append(token)
        sizes, survivors = [len(a) + len(b) for a, b in groups], [len(a) for a, _ in groups]
        given = quotas(sizes, survivors, count, count - has_cls)
        taken = [token for (a, b), quota in zip(groups, given, strict=True) for token in (a + b)[:quota]]
        taken = taken[: count - has_cls]
        return taken if has_cls or count <= 150 else sorted(taken)

    def rank(self, count: int, total: int, width: int, has_cls: bool) -> int:
        """How many groups a view of `total` tokens is divided into, of which `count` are left."""
        return min(max(count // 4, 1 if has_cls else 4), total, width)

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Source, architecture: Architecture) -> int:
        """The directions and the cosines of each view, and the CLS token's attention."""
        early, flops = self.early(source, architecture), 0
        width = architecture.vision_hidden if early else architecture.hidden
        for tokens, count in zip(views, left, strict=True):
            if early or count < tokens:
                flops += ops.principal_directions_flops(width, tokens, self.rank(count, tokens, width, early))
                flops += 2 * tokens**2 * width
        rows = source.encoder_rows(architecture) if early else ()
        return flops + sum(ops.encoder_attention_flops(count, architecture.encoder_hidden, "cls") for count in rows)


def first_come(rival: Tensor) -> Tensor:
    """Which of N tokens stay [N], asked in order: those that are no rival, by rival [N, N], of one that stays."""
    stays = torch.ones(len(rival), dtype=torch.bool)
    for place in range(len(rival)):
        if stays[place]:
            stays[place + 1 :] &= ~rival[place, place + 1 :]
    return stays


def quotas(sizes: Sequence[int], survivors: Sequence[int], count: int, wanted: int) -> list[int]:
    """How many tokens each group gives, `wanted` in all."""
    least = [min(1, size) for size in sizes]
    most = [min(5 * -(-count // 64), size, left) for size, left in zip(sizes, survivors, strict=True)]
    while sum(most) < count and most != list(sizes):
        most = [min(up + 1, size) for up, size in zip(most, sizes, strict=True)]
    extra, before, given, shared = max(0, wanted - sum(least)), 0, [], 0
    for left, low, up in zip(survivors, least, most, strict=True):
        shared += left
        upto = round(extra * shared / sum(survivors))
        given.append(min(upto - before + low, up))
        before = upto
    for number in sorted(range(len(sizes)), key=lambda number: -survivors[number]):
        given[number] += min(most[number] - given[number], max(0, extra + sum(least) - sum(given)))
    return given
