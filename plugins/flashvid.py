"""FlashVID: attended and diverse tokens of each frame, the others merged along time (ICLR 2026, arXiv 2602.08024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer, VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


@dataclass
class FlashVID(TokenReducer):
    """Before the LLM, leave about b = ceil(P · retention · expansion) of a frame's P tokens; inside it, prune to `inside`.

    A video is cut where the cosine of consecutive frames' means is below `cut`, and into `segments` segments at least.
    - **ADTS** picks n_a = ceil(alpha · b) tokens of each frame, farthest first (`ops.farthest_first`) by the distance
      D_ij = (1 - cos_ij) · a_j · e_j to a token j that the encoder attends to by a_j; e_j is the mean product of x_j with
      the means of its segment's frames (1 in `version=1`).
    - **TSTM**: each other token of a frame is linked to the one of the frame before, in its segment, that is most like it,
      where their cosine is above `link` (raised where fewer than m · b of a segment of m frames would be left). From the
      last frame on a token's sum is added to that of the one it is linked to; what is linked to nothing is left, as its
      sum / (1 + number of tokens linked to it directly). If these are more than m · n_t, n_t = b - n_a, each frame's n are
      clustered (`ops.dpc_knn`, min(7, c) neighbours) to the means of c = ceil(n · m · n_t / their number).
      In a segment of one frame all P tokens are clustered, ADTS's own too, so one can stay twice.
    Order: by place. Before layer `layer` (null: 20 of 28, or that share) the ceil(inside · n) tokens that the last one
    attends to most are left (mean over heads). With the defaults at 28 layers the mean is `retention`.

    A picture's views are segments of one frame. On purpose: no noise in the clustering (with one or two centres the
    released code is random); no token is picked twice by ADTS, as can happen there where an e_j is negative.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of tokens, mean over layers.")] = 0.15
    expansion: Annotated[float, Field(gt=0, allow_inf_nan=False, description="So many times more before the LLM.")] = 1.25
    alpha: Annotated[Share, Field(description="Share of a frame's tokens that ADTS picks.")] = 0.7
    link: Annotated[Cosine, Field(description="Cosine above which tokens of consecutive frames are one.")] = 0.8
    cut: Annotated[Cosine, Field(description="Cosine of frames below which a segment ends.")] = 0.9
    segments: Annotated[int, Field(ge=1, description="Segments of a video, at least.")] = 8
    version: Annotated[Literal[1, 2], Field(description="2: ADTS weighs tokens by the segment too.")] = 2
    layer: Annotated[int | None, Field(ge=1, description="First layer that sees fewer tokens (null: by depth).")] = None
    inside: Annotated[Share, Field(description="Share of what entered that is left from there on.")] = 0.3
    position: Annotated[PositionPolicy, Field(description="Position ids of what enters: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "flashvid"
    whole_views: ClassVar[bool] = True
    text_aware: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> list[int] | None:
        budgets = [self.budget(tokens) for tokens in views]
        return None if source.kind == "video" and sum(budgets) < sum(views) else budgets

    def budget(self, tokens: int) -> int:
        """How many of a frame's tokens are left, about."""
        return min(tokens, math.ceil(tokens * self.retention * self.expansion))

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        attention = tokens.encoder_saliency().mean(0)
        views = tokens.views()
        groups = [torch.stack(views)] if tokens.kind == "video" else [view[None] for view in views if len(view)]
        made: list[Tensor] = []
        anchors: list[Tensor] = []
        into = torch.full_like(tokens.view, -1)
        for index in groups:
            left, own, goes = self.segmented(tokens.features, attention, index)
            into[index] = torch.where(goes < 0, -1, goes + sum(map(len, anchors)))
            made.append(left)
            anchors.append(own)
        kept = torch.cat(anchors)
        order = kept.argsort(stable=True)
        into = torch.where(into < 0, -1, order.argsort()[into.clamp(min=0)])
        return Reduction(torch.cat(made)[order].to(tokens.features.dtype), kept[order], into)

    def segmented(self, features: Tensor, attention: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of frames of equally many tokens, index [T, P]: features, anchors, and where each token went [T, P]."""
        x, budget = features[index].float(), self.budget(len(index[0]))
        diverse = math.ceil(self.alpha * budget)
        means = x.mean(1)
        segments = ops.frame_segments(ops.frame_similarity(means), self.cut, self.segments)
        distance = (1 - ops.cosine_similarity(x)) * attention[index][:, None]
        if self.version == 2:
            theme = torch.cat([means[start:stop].mean(0).expand(stop - start, -1) for start, stop in segments])
            distance = distance * (x * theme[:, None]).sum(-1)[:, None]
        picked = ops.farthest_first(distance, diverse)
        free = torch.ones_like(index).scatter(1, picked, 0).bool()
        merged, linked, earlier = self.merge_along_time(x, free, segments, budget)
        apart = ops.squared_distances(merged)  # of every token, so that what it costs does not depend on the picture
        roots = (free & ~linked).cpu()
        anchors = [index.gather(1, picked).flatten()]
        made, goes, total = [features[anchors[0]].float()], torch.full_like(index, -1), len(index) * diverse
        for start, stop in segments:
            left = roots[start:stop] if stop - start > 1 else torch.ones_like(roots[start:stop])
            share = (stop - start) * (budget - diverse) / max(1, int(left.sum()))
            for frame, row in zip(range(start, stop), left, strict=True):
                own = row.nonzero()[:, 0].to(index.device)
                count = min(len(own), math.ceil(len(own) * share))
                if not count:
                    continue
                clusters = ops.density_peaks(apart[frame, own][:, own], count, min(7, count))
                made.append(ops.mean_by_assignment(merged[frame, own][None], clusters.assignment[None], count)[0])
                anchors.append(index[frame, own[clusters.centres]])
                goes[frame, own] = total + clusters.assignment
                total += count
        for frame in range(1, len(index)):
            goes[frame] = torch.where(linked[frame], goes[frame - 1, earlier[frame - 1]], goes[frame])
        goes.scatter_(1, picked, torch.arange(len(index) * diverse, device=index.device).view(len(index), diverse))
        return torch.cat(made), torch.cat(anchors), goes

    def merge_along_time(
        self, x: Tensor, free: Tensor, segments: list[tuple[int, int]], budget: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Link each of the `free` tokens [T, P] of frames x [T, P, d] to the one most like it in the frame before.

        Returns the means along the links [T, P, d], which tokens are linked [T, P], and to which place [T - 1, P].
        """
        unit = torch.nn.functional.normalize(x, dim=-1)
        similarity = torch.bmm(unit[1:], unit[:-1].transpose(1, 2)).masked_fill(~free[:-1, None], -1)
        best, earlier = similarity.max(-1)
        best = torch.cat([torch.full_like(x[:1, :, 0], -1), best.masked_fill(~free[1:], -1)])
        linked = torch.zeros_like(free)
        for start, stop in segments:
            links, lower = best[start:stop].clone(), (stop - start) * budget
            links[0] = -1
            ranked = links.flatten().sort(descending=True).values
            raised = ranked[len(ranked) - lower - 1].clamp(min=-1 + 1e-6)
            few = len(ranked) - (links > self.link).sum() < lower
            linked[start:stop] = links > torch.where(few, raised, self.link)
        sums, sizes = list(x), list(torch.ones_like(x[..., :1]))
        for frame in range(len(x) - 1, 0, -1):
            goes = linked[frame, :, None].float()
            sums[frame - 1] = sums[frame - 1].index_add(0, earlier[frame - 1], sums[frame] * goes)
            sizes[frame - 1] = sizes[frame - 1].index_add(0, earlier[frame - 1], goes)
        return torch.stack(sums) / torch.stack(sizes), linked, earlier

    # --- inside the LLM -----------------------------------------------------------------------------------------

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        first = max(1, round(layers * 20 / 28)) if self.layer is None else self.layer
        return {first - 1: math.ceil(self.inside * entered)} if self.inside < 1 else {}

    def score(self, layer: DecoderLayer) -> Tensor:
        return layer.attention("last")[:, 0].mean(0)

    def score_flops(self, tokens: int, architecture: Architecture) -> int:
        return ops.attention_flops(1, tokens, architecture.heads, architecture.head_dim)
