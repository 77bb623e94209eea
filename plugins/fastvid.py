"""FastVID: segments of similar frames, salient tokens, density peaks (Shen et al., NeurIPS 2025, arXiv 2503.11187)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, UnsupportedError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class FastVID(TokenReducer):
    """Before the LLM, leave n = int(P · retention) of a frame's P tokens on average: salient ones, and merged context.

    **Segments** (DySeg): cuts where the cosine of consecutive frames' vectors is below `cut`, and into `segments` at least.
    **Salient** (ATS): of each frame the n - int(n · context) tokens of highest attention, unchanged.
    **Context** (DTM): the anchor frames of a segment of m frames are its last and every `stride`-th before. Each of the A
    anchors has q = floor(int(n · context) · m / A) centres among its other tokens, the density peaks (`ops.dpc_knn`, 4
    neighbours). All other tokens of the segment (where q = int(n · context), of the anchor's frame) go to the anchor's
    centre most like them: centre ← w · centre + (1 - w) · mean of its k, w = max(1 / (k + 1), beta).
    `version="llava-video"` takes int(n · m · context) per segment, hands remainders out (so n · T are left exactly) and
    merges no token into itself; it is that of LLaVA-Video. Tokens keep their order and, as released, their positions.

    Attention and frame vectors are those of SigLIP's pooling head (`tokens.pooling_head`). An encoder that has none gives
    its saliency and the mean of its features (`signal="auto"`; "head" refuses it); the Hub's LLaVA-OneVision is one.
    A picture's views are segments of one frame. On purpose: no noise in the clustering; fewer frames than segments, no
    context and budgets that exceed an anchor frame (then anchors stand closer) work, where the released code crashes; at
    least one token of a frame stays.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of a frame's tokens left.")] = 0.1
    context: Annotated[Share, Field(description="Share of those that are merged context.")] = 0.4
    segments: Annotated[int, Field(ge=1, description="Segments of a video, at least.")] = 8
    cut: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, description="Cosine of frames below which a segment ends.")] = (
        0.9
    )
    stride: Annotated[int, Field(ge=1, description="Distance of a segment's anchor frames.")] = 4
    beta: Annotated[Share, Field(description="Weight of a centre against the mean of its tokens, at least.")] = 0.6
    version: Annotated[Literal["onevision", "llava-video"], Field(description="The released code's form.")] = "onevision"
    signal: Annotated[Literal["auto", "head", "saliency"], Field(description="What tells salient tokens and frames.")] = "auto"
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "keep"

    name: ClassVar[str] = "fastvid"
    whole_views: ClassVar[bool] = True

    def check_model(self, architecture: Architecture) -> None:
        if self.signal == "head" and not architecture.pooling_head:
            raise UnsupportedError(
                f"'fastvid:signal=head' reads SigLIP's pooling head, which {architecture.name} does not run "
                "(vision_use_head=False). Leave signal at 'auto'."
            )

    def budget(self, tokens: int) -> int:
        return min(tokens, max(1, int(tokens * self.retention)))

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> list[int] | int | None:
        budgets = [self.budget(tokens) for tokens in views]
        if source.kind != "video" or sum(budgets) == sum(views):
            return budgets
        return None if self.version == "onevision" else sum(budgets)

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        attention, vectors = self.signals(tokens)
        x, views = tokens.features.float(), [view for view in tokens.views() if len(view)]
        runs = [(number, number + 1) for number in range(len(views))]
        if tokens.kind == "video":
            runs = ops.frame_segments(ops.frame_similarity(vectors), self.cut, self.segments)
        salient, context = [], []  # of each frame; of each anchor its segment, its centres and the tokens that go to them
        for start, stop in runs:
            counts, quotas = self.quotas(stop - start, len(views[start]))
            others, centres = [], {}
            for frame, view in enumerate(views[start:stop]):
                apart = ops.squared_distances(x[view])  # of every frame, so that what it costs does not depend on the picture
                ranked = attention[view].argsort(descending=True, stable=True)
                salient.append(view[ranked[: counts[frame]]])
                rest = ranked[counts[frame] :].sort().values
                others.append(view[rest])
                if quotas.get(frame):
                    centres[frame] = view[rest[ops.density_peaks(apart[rest][:, rest], quotas[frame], 4).centres]]
            for frame, own in centres.items():
                pool = others[frame] if self.alone(quotas[frame], len(views[start])) else torch.cat(others)
                context.append(((start, stop), own, pool if self.version == "onevision" else without(pool, own)))
        kept = torch.cat([*salient, *(own for _, own, _ in context)])
        made, first = [x[view] for view in salient], sum(map(len, salient))
        into = torch.full((len(x),), -1, device=x.device)  # a token of several centres is told of the last one
        unit = torch.nn.functional.normalize(x, dim=-1)
        for run in runs:
            inside = torch.cat(views[slice(*run)])
            similarity = torch.mm(unit[inside], unit[kept].T)
            for own, pool in [(own, pool) for segment, own, pool in context if segment == run]:
                nearest = similarity[pool - inside[0], first : first + len(own)].argmax(1)
                into[pool] = first + nearest
                first += len(own)
                made.append(self.merge(x[own], x[pool], nearest))
        into[kept] = torch.arange(len(kept), device=x.device)
        order = kept.argsort()
        into = torch.where(into < 0, -1, order.argsort()[into.clamp(min=0)])
        return Reduction(torch.cat(made)[order].to(tokens.features.dtype), kept[order], into)

    def signals(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """The attention on each token, and a vector of each frame."""
        assert tokens.architecture is not None
        if self.reads_head(tokens.architecture):
            return tokens.pooling_head()
        features = tokens.encoder_features(tokens.architecture.saliency_layer).float()
        means = torch.stack([features[view].mean(0) for view in tokens.views()])
        return tokens.encoder_saliency().mean(0), means

    def reads_head(self, architecture: Architecture) -> bool:
        return self.signal == "head" or (self.signal == "auto" and architecture.pooling_head)

    def quotas(self, frames: int, tokens: int) -> tuple[list[int], dict[int, int]]:
        """Salient tokens of each frame of a segment, and centres of each of its anchor frames."""
        budget = self.budget(tokens)
        merged = int(budget * self.context) * frames
        if self.version == "llava-video":
            merged = int(budget * frames * self.context)
        each, more = divmod(budget * frames - merged, frames)
        salient, quotas = [each + (frame < more) for frame in range(frames)], {}
        for stride in range(self.stride, 0, -1):
            anchors = range((frames - 1) % stride, frames, stride)
            each, more = divmod(merged, len(anchors))
            more = more if self.version == "llava-video" else 0
            quotas = {frame: each + (len(anchors) - place <= more) for place, frame in enumerate(anchors)}
            if all(quota <= tokens - salient[frame] for frame, quota in quotas.items()):
                break
        return salient, quotas

    def alone(self, quota: int, tokens: int) -> bool:
        """Whether an anchor merges the tokens of its own frame only."""
        return self.version == "onevision" and quota == int(self.budget(tokens) * self.context)

    def merge(self, centres: Tensor, pool: Tensor, nearest: Tensor) -> Tensor:
        """Centres [q, d] with the tokens pool [n, d] that are nearest to each."""
        sums = torch.zeros_like(centres).index_add(0, nearest, pool)
        sizes = torch.bincount(nearest, minlength=len(centres))[:, None]
        weight = (1 / (sizes + 1)).clamp(min=self.beta)
        return weight * centres + (1 - weight) * sums / sizes.clamp(min=1)

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Source, architecture: Architecture) -> int:
        """Distances in each frame, similarities to all that is left, and the encoder's saliency where it is read."""
        own = sum(2 * tokens * (tokens + sum(left)) * architecture.hidden for tokens in views)
        if self.reads_head(architecture):
            return own
        queries = "cls" if architecture.has_cls else "all"
        rows = source.encoder_rows(architecture)
        return own + sum(ops.encoder_attention_flops(count, architecture.encoder_hidden, queries) for count in rows)


def without(tokens: Tensor, some: Tensor) -> Tensor:
    """Tokens without `some` of them, which are all among them."""
    taken = (tokens[:, None] == some).any(1)
    return tokens[taken.long().argsort(stable=True)[: len(tokens) - len(some)]]
