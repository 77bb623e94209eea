"""PruneVid: merge what stands still in a scene, keep what the question looks at (Huang et al., ACL 2025, arXiv 2412.16117)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import CachedLayer, DecoderLayer, VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class PruneVid(TokenReducer):
    """Before the LLM, merge over scenes what stands still, and clusters of what is left; inside it keep what the text attends to.

    **Scenes**: density peaks of the T frames' means (`ops.dpc_knn`) make int(T · segments) clusters. Of each cluster the longest
    runs of frames stay, if longer than one frame; what lies between goes to the longer of its two neighbours, else to the
    left one. **Merging**: a place is static in a scene where the mean cosine of its tokens, over all pairs of frames, exceeds
    `tau`. Static tokens become their mean over the scene's frames, the others stay frame by frame. Of each group (a scene's
    static ones, a frame's others) of n > 14 tokens the int(n · clusters) density peaks' clusters remain, each as its mean.
    Order: scene by scene static, then frame by frame; clusters by their centres' scores.

    **Inside the LLM**, after layer `layer` (null: 10 of 32, or that share), of each group of n tokens int(n · alpha) stay: by
    the largest attention weight in that layer, over all heads and all rows of the text behind the video. **The KV caches** of
    the layers up to that one are cut to the same tokens, and generated tokens go on from the position that they would have.

    Pictures are left as they are. On purpose: no noise in the clustering, and videos of fewer than seven frames, on which the
    released code stops with an error, work.
    """

    tau: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, description="Mean cosine above which a place is static.")] = 0.8
    segments: Annotated[Share, Field(description="Clusters of frames, as a share of the frames.")] = 0.25
    clusters: Annotated[Share, Field(description="Share of a group of tokens that remains before the LLM.")] = 0.5
    alpha: Annotated[Share, Field(description="Share of a group of tokens that remains inside the LLM.")] = 0.4
    layer: Annotated[int | None, Field(ge=0, description="Layer after which tokens are dropped (null: by depth).")] = None
    neighbours: Annotated[int, Field(ge=1, description="Nearest points that make a density, at most.")] = 7
    position: Annotated[PositionPolicy, Field(description="Position ids of what enters: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "prunevid"
    knob: ClassVar[str] = ""
    whole_views: ClassVar[bool] = True
    text_aware: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> tuple[int, ...] | None:
        return None if source.kind == "video" else views

    def reduce(self, tokens: VisualTokens) -> Reduction:
        index = torch.stack(tokens.views())
        x = tokens.features[index].float()
        scenes = self.scenes(x)
        means = torch.cat([x[start:stop].mean(0).expand(stop - start, -1, -1) for start, stop in scenes])
        # of every frame: what it costs depends on no picture
        inside, across = ops.squared_distances(x), ops.squared_distances(means)
        into = torch.full((len(tokens.features),), -1, device=x.device)
        made, anchors, count = [], [], 0
        group, groups = torch.full_like(into, -1), 0  # of each token that remains, told by the place where it stands
        for start, stop in scenes:
            static = self.static(x[start:stop])
            parts = [(means[start], across[start], static, index[start:stop])]
            parts += [(x[t], inside[t], ~static, index[t : t + 1]) for t in range(start, stop)]
            for states, apart, chosen, own in parts:
                places = chosen.nonzero()[:, 0]
                merged, centres, cluster = self.clustered(states[places], apart[places][:, places])
                made.append(merged)
                anchors.append(own[0, places[centres]])
                group[anchors[-1]] = groups
                into[own[:, places]] = (count + cluster).expand(len(own), -1)
                count, groups = count + len(merged), groups + 1
        tokens.memory["prunevid"] = group.view(len(x), -1), groups
        return Reduction(torch.cat(made).to(tokens.features.dtype), torch.cat(anchors), into)

    def scenes(self, x: Tensor) -> list[tuple[int, int]]:
        """The scenes [start, stop) of frames x [T, P, d]."""
        labels = ops.dpc_knn(x.mean(1), max(1, int(len(x) * self.segments)), self.neighbours).assignment.tolist()
        return scenes_of(labels)

    def static(self, frames: Tensor) -> Tensor:
        """Which places of a scene's frames [w, P, d] stand still, bool [P]."""
        count = len(frames)
        if count == 1:
            return torch.zeros(frames.shape[1], dtype=torch.bool, device=frames.device)
        unit = torch.nn.functional.normalize(frames, dim=-1)
        pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
        return pairs / (count * (count - 1)) > self.tau

    def clustered(self, states: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A group's tokens [n, d] of which the distances are known, merged; their centres; where each token went."""
        everything = torch.arange(len(states), device=states.device)
        if len(states) <= 14:
            return states, everything, everything
        count = max(1, int(len(states) * self.clusters))
        centres, cluster = ops.density_peaks(apart, count, self.neighbours)
        return ops.mean_by_assignment(states[None], cluster[None], len(centres))[0], centres, cluster

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Source, architecture: Architecture) -> int:
        """Distances of the frames' means, in every frame, and in every frame of its scene's means."""
        if source.kind != "video":
            return 0
        return 2 * architecture.hidden * (len(views) ** 2 + 2 * sum(tokens**2 for tokens in views))

    # --- inside the LLM -----------------------------------------------------------------------------------------

    def last_full(self, layers: int) -> int:
        """The layer after which tokens are dropped."""
        return round(layers * 10 / 32) if self.layer is None else self.layer

    def kept(self, entered: int, layers: int) -> dict[int, None]:
        return {self.last_full(layers): None}

    def pick(self, layer: DecoderLayer, count: int | None) -> Tensor:
        rows: Any = layer.text_after if len(layer.text_after) else "last"
        score, places = layer.attention(rows).amax((0, 1))[layer.visual], layer.places()
        group, count = torch.zeros_like(layer.visual), 1  # group 0 is what no video's group holds: it stays
        for number, memory in enumerate(layer.source_memories):
            if "prunevid" in memory:
                of_place, groups = memory["prunevid"]
                own, found = places.look_up(number, of_place)
                group = torch.where(own & (found >= 0), count + found, group)
                count += groups
        sizes = torch.bincount(group, minlength=count).tolist()
        quotas = torch.tensor([sizes[0], *(int(size * self.alpha) for size in sizes[1:])], device=group.device)
        return ops.top_of_groups(score, group, quotas).sort().values

    # --- the KV cache -------------------------------------------------------------------------------------------

    def cached(self, entered: int, layers: int) -> dict[int, None]:
        return dict.fromkeys(range(self.last_full(layers) + 1))

    def pick_cached(self, layer: CachedLayer, count: int | None) -> Tensor:
        return layer.alive(self.last_full(layer.num_layers) + 1)

    def cached_flops(self, tokens: int, architecture: Architecture) -> int:
        return 0


def scenes_of(labels: list[int]) -> list[tuple[int, int]]:
    """The runs of frames [start, stop) that are left of the frames' labels."""
    runs, start = [], 0
    for label, members in groupby(labels):
        stop = start + len(list(members))
        runs.append((label, start, stop))
        start = stop
    longest = {label: max(stop - start for other, start, stop in runs if other == label) for label in labels}
    kept = [[start, stop] for label, start, stop in runs if 1 < stop - start == longest[label]]
    if not kept:
        return [(0, len(labels))]
    kept[0][0] = 0
    for before, after in pairwise(kept):
        if before[1] - before[0] >= after[1] - after[0]:
            before[1] = after[0]
        else:
            after[0] = before[1]
    kept[-1][1] = len(labels)
    return [(start, stop) for start, stop in kept]
