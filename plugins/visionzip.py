"""VisionZip: dominant tokens by CLS attention, the others merged into a few (Yang et al., CVPR 2025, arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class VisionZip(TokenReducer):
    """In each view of N tokens leave T = round(retention · N): T - C dominant ones and C = round(T · contextual) merged ones.

    **Dominant**: the CLS token itself and the patches it attends to most (without CLS: those of highest mean attention
    over all queries in the last layer). **Contextual**: of the R other patches, in raster order, every floor(R / C)-th
    is a target, C in all; each of the rest goes to the target of greatest cosine of keys (of the same layer, mean
    over heads). A target becomes x_target + mean of what went to it, so it is about twice as long as other tokens.

    Before the projector, view by view: CLS, dominant in raster order, contextual. Tiles: the base view's, then all tiles'
    dominant ones row by row over the whole grid, their CLS tokens, their contextual ones; no newlines. Where the
    model joins patches on the way (Qwen's merger, a video's pooling) it acts before the LLM, without CLS, and contextual
    tokens stay in their targets' places, as in LightCompress' port; keys are taken before the rotary embedding there.

    On purpose other than released: no contextual tokens, or as many as there are patches left, is no error; at least one
    token of each view stays. A CLS token stands for the first patch where a position is asked for.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens left.")] = 0.2222
    contextual: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of those that are merged.")] = 0.15625
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "visionzip"

    def early(self, source: Source, architecture: Architecture) -> bool:
        return architecture.encoder_merge == 1 and not source.pooled

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer, architecture.feature_layer)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.architecture is not None and tokens.left is not None
        x, score = tokens.features, tokens.encoder_saliency().mean(0)
        keys = tokens.encoder_keys(tokens.architecture.saliency_layer)
        with_cls = int(tokens.early and tokens.has_cls)
        cls = tokens.cls_features(tokens.architecture.feature_layer)[:, None] if with_cls else None
        into = torch.full((len(x),), -1, device=x.device)
        parts = [(x[:0], into[:0], into[:0])] * len(tokens.left)  # of each view: outputs, their anchors, their sections
        for numbers, index, count in ops.alike(tokens.views(), tokens.left):
            contextual = min(round(count * self.contextual), count - with_cls)
            dominant = count - with_cls - contextual
            kept, targets, merged, place = zip_views(x[index], score[index], keys[index], dominant, contextual)
            anchors = index.gather(1, torch.cat([kept[:, :0].new_zeros(len(index), with_cls), kept, targets], 1))
            made = torch.cat(
                [*([] if cls is None else [cls[torch.tensor(numbers, device=x.device)]]), x[index.gather(1, kept)], merged], 1
            )
            # behind the base view's, in section 0, the tiles' dominant patches, CLS tokens and contextual tokens
            tiled = torch.tensor([2] * with_cls + [1] * dominant + [3] * contextual, device=x.device)
            for number, own, rows, stand_for, goes in zip(numbers, index, made, anchors, place, strict=True):
                parts[number] = rows, stand_for, tiled if tokens.tiles and number else torch.zeros_like(tiled)
                into[own] = torch.where(goes < 0, -1, goes + with_cls + sum(tokens.left[:number]))
        features, anchors, sections = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        order = anchors.argsort(stable=True)
        if tokens.early:
            here = torch.arange(len(anchors), device=x.device)
            order = torch.where(sections == 1, tokens.reading_place(anchors), here).argsort(stable=True)
            order = order[sections[order].argsort(stable=True)]
        return Reduction(features[order], anchors[order], torch.where(into < 0, -1, order.argsort()[into.clamp(min=0)]))


def zip_views(x: Tensor, score: Tensor, keys: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rule in views of n patches: x [views, n, c], score [views, n], keys [views, n, w].

    Returns the dominant patches [views, dominant], the targets [views, contextual], what they become [views, contextual, c],
    and for each patch the output it is part of [views, n]: dominant ones first, then contextual ones; -1 where it is dropped.
    """
    kept = score.argsort(descending=True, stable=True)[:, :dominant].sort().values
    place = torch.full_like(score, -1, dtype=torch.long)
    number = torch.arange(dominant + contextual, device=x.device).expand(len(x), -1)
    place.scatter_(1, kept, number[:, :dominant])
    rest = place.argsort(stable=True)[:, : x.shape[1] - dominant]
    if not contextual:
        return kept, rest[:, :0], x[:, :0], place
    step = rest.shape[1] // contextual
    spread = range(0, step * contextual, step)
    others = torch.tensor(sorted(set(range(rest.shape[1])) - set(spread)), dtype=torch.long, device=x.device)
    targets, others = rest[:, ::step][:, :contextual], rest[:, others]
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    view = torch.arange(len(x), device=x.device)[:, None]
    nearest = (unit[view, others] @ unit[view, targets].transpose(1, 2)).argmax(-1)
    place.scatter_(1, targets, number[:, dominant:]).scatter_(1, others, nearest + dominant)
    goes = (nearest[:, None] == torch.arange(contextual, device=x.device)[:, None]).float()  # [views, contextual, others]
    mean = goes @ x[view, others].float() / goes.sum(-1, keepdim=True).clamp(min=1)
    return kept, targets, x[view, targets] + mean.to(x.dtype), place
