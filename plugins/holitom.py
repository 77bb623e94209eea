"""HoliTom: merge what stands still in a video, keep what the encoder attends to (Shao et al., NeurIPS 2025, arXiv 2505.21334)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer, VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class HoliTom(TokenReducer):
    """Before the LLM, merge static tokens over windows of frames and keep the attended ones; inside it, merge half away.

    A token is unchanged where its cosine with the same place of the next frame is above tau. The video is divided into
    the windows with the largest gain, Σ (w - 1) · (places unchanged all through a window of w frames), and r' = min(1,
    retention · T · P / (T · P - gain)). Of each window remain
    - static places, averaged over its frames: c = round(n · r') density peaks (`ops.dpc_knn`, min(7, c) neighbours), each
      becoming beta · itself + (1 - beta) · mean of the others of its cluster;
    - of each frame's other n tokens the ceil(n · r') that the encoder attends to most (`tokens.encoder_saliency`, heads' mean).
    Order: window by window static, then frame by frame; a static token stands at its place in the first frame.

    Before layer `layer` (null: 18 of 28, or that share) round((1 - drop) · n) of the n tokens that entered are left, by the
    last row of the layer before, mean over heads. Each dropped token, in order, is merged into the kept one most like it:
    h ← (h + dropped) / 2. `drop=0` is the method "without M". Positions are renumbered before the LLM, kept inside it.

    A picture's views are frames in which nothing stands still. On purpose: no noise in the clustering (where c is 1 or 2 the
    released code is random), no second, contextual share D, on which it crashes, and retention 1 merges nothing.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of tokens left before the LLM.")] = 0.15
    tau: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, description="Cosine above which a token is unchanged.")] = 0.8
    beta: Annotated[Share, Field(description="Weight of a centre against the mean of its cluster.")] = 0.6
    neighbours: Annotated[int, Field(ge=1, description="Nearest points that make a density, at most.")] = 7
    window: Annotated[int, Field(ge=1, description="Frames of the longest window.")] = 1024
    layer: Annotated[int | None, Field(ge=1, description="First layer that sees fewer tokens (null: by depth).")] = None
    drop: Annotated[Share, Field(description="Share of tokens merged away inside the LLM.")] = 0.5
    position: Annotated[PositionPolicy, Field(description="Position ids of what enters: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "holitom"
    whole_views: ClassVar[bool] = True
    text_aware: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> list[int] | None:
        if source.kind == "video" and self.retention < 1:
            return None
        return [math.ceil(tokens * self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor | Reduction:
        attention = tokens.encoder_saliency().mean(0)
        views = tokens.views()
        if tokens.kind != "video":
            return torch.cat([self.attended(attention, view, self.retention) for view in views])
        index = torch.stack(views)
        frames = tokens.features[index].float()
        unchanged = (ops.frame_similarity(frames) > self.tau).cpu()
        windows, nothing = ops.static_windows(unchanged, self.window), torch.zeros_like(unchanged[0:1]).any(0)
        still = [unchanged[start : stop - 1].all(0) if stop - start > 1 else nothing for start, stop in windows]
        gain = sum(int(places.sum()) * (stop - start - 1) for places, (start, stop) in zip(still, windows, strict=True))
        total = len(tokens.features)
        ratio = min(1.0, self.retention / ((total - gain) / total))
        means = torch.cat([frames[start:stop].mean(0).expand(stop - start, -1, -1) for start, stop in windows])
        apart = ops.squared_distances(means)  # of every frame, so that what it costs does not depend on the picture
        made, anchors, count = [], [], 0
        into = torch.full((total,), -1, device=index.device)
        for places, (start, stop) in zip(still, windows, strict=True):
            static, moving = (found.nonzero()[:, 0].to(index.device) for found in (places, ~places))
            merged, centres, cluster = self.merge(means[start][static], apart[start][static][:, static], ratio)
            moved = [self.attended(attention, view[moving], ratio) for view in index[start:stop]]
            own = torch.cat([index[start, static[centres]], *moved])
            made += [merged.to(tokens.features.dtype), tokens.features[own[len(centres) :]]]
            if len(centres):
                into[index[start:stop, static]] = count + cluster
            into[own] = torch.arange(count, count + len(own), device=index.device)
            anchors.append(own)
            count += len(own)
        return Reduction(torch.cat(made), torch.cat(anchors), into)

    def attended(self, attention: Tensor, view: Tensor, ratio: float) -> Tensor:
        """The share of a view's tokens [n] with the highest attention, in their order."""
        return view[ops.top_indices(attention[view], math.ceil(len(view) * ratio))]

    def merge(self, x: Tensor, apart: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Static tokens [n, d], of which the distances are known, merged into c = round(n · ratio).

        Returns the merged tokens [c, d], the centres they stand for [c], ascending, and the cluster of each token [n].
        """
        count, every = round(len(x) * ratio), torch.arange(len(x), device=x.device)
        if count in (0, len(x)):
            return x[:count], every[:count], every
        clusters = ops.density_peaks(apart, count, min(self.neighbours, count))
        order = clusters.centres.argsort()
        centres, cluster = clusters.centres[order], order.argsort()[clusters.assignment]
        sums = torch.zeros_like(x[:count]).index_add(0, cluster, x) - x[centres]
        others = torch.bincount(cluster, minlength=count)[:, None] - 1
        blended = self.beta * x[centres] + (1 - self.beta) * sums / others.clamp(min=1)
        return torch.where(others > 0, blended, x[centres]), centres, cluster

    # --- inside the LLM -----------------------------------------------------------------------------------------

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        first = max(1, round(layers * 18 / 28)) if self.layer is None else self.layer
        return {first - 1: round((1 - self.drop) * entered)} if self.drop else {}

    def pick(self, layer: DecoderLayer, count: int | None) -> Reduction:
        assert count is not None
        states = layer.hidden_states[layer.visual]
        attention = layer.attention("last")[:, 0].mean(0)[layer.visual]
        ranked = attention.argsort(descending=True, stable=True)
        kept, dropped = ranked[:count].sort().values, ranked[count:].sort().values
        unit = torch.nn.functional.normalize(states.float(), dim=-1)
        into = torch.mm(unit[dropped], unit[kept].T).argmax(1)
        # merged one after the other, the last of a kept token's m weighs 1/2, the one before 1/4, it itself 2^-m
        into, order = into.sort(stable=True)
        sizes = torch.zeros_like(kept).index_add_(0, into, torch.ones_like(into))
        from_last = sizes.cumsum(0)[into] - torch.arange(len(order), device=order.device)
        weights = torch.pow(0.5, from_last.float())[:, None]
        merged = states[kept].float() * torch.pow(0.5, sizes.float())[:, None]
        merged = merged.index_add(0, into, states[dropped[order]].float() * weights)
        return Reduction(merged.to(states.dtype), kept)
