"""LLaVA-PruMerge: keep what CLS attends to, merge the rest into it (Shang et al., ICCV 2025, arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class PruMerge(TokenReducer):
    """Before the projector, per view: select by the encoder's attention, merge each kept token's neighbours into it.

    Attention a: softmax(q_cls Kᵀ / √C) of the last encoder layer's projections, heads concatenated. Without a CLS
    token (SigLIP) the query is the mean of the patches' queries. Kept: the int(N · share) highest, share being that
    of outliers, a > Q3 + 1.5 · IQR (`mode="adaptive"`), or `ratio` ("fixed"). Merge: to each kept x_i add Σ a_j x_j
    over its `neighbours` most similar tokens by key; one extra token, Σ a_j x_j over those not kept, ends each view.
    Order: descending attention, extra last.

    `tokens` sets an exact budget for each image or video, extra tokens included, spread evenly over its views (at
    least the extra token for each). A view whose budget is all its tokens is left alone. The released code finds
    outliers over the whole batch at once; here each view has its own.
    """

    mode: Annotated[
        Literal["adaptive", "fixed"], Field(description="Keep the attention's outliers, or a fixed share (ratio).")
    ] = "adaptive"
    ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of attended tokens in fixed mode.")] = 0.125
    tokens: Annotated[int | None, Field(ge=1, description="Exact budget of an image or video, instead of mode.")] = None
    neighbours: Annotated[int, Field(ge=1, description="Similar tokens merged into each kept one.")] = 32
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "prumerge"

    whole_views: ClassVar[bool] = True

    def early(self, source: Source, architecture: Architecture) -> bool:
        return True

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int] | None:
        if self.mode == "adaptive" and self.tokens is None:
            return None
        return [min(t, self.picks(t, budget) + 1) for t, budget in zip(views, _spread(self.tokens, len(views)), strict=True)]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.encoder_layers - 1,)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        query, key = tokens.encoder_query_key(-1)
        budgets = _spread(self.tokens, len(tokens.grids))
        parts, offset = [], 0
        into = torch.full((len(tokens.features),), -1, device=tokens.features.device)
        for number, view in enumerate(tokens.views()):
            attention = encoder_attention(query[number], key[number], tokens.has_cls)
            picked = self.pick(attention, budgets[number])
            if len(picked) + 1 < len(view):
                part = self.merge(tokens.features[view], key[number, int(tokens.has_cls) :], attention, picked)
            else:
                everything = torch.arange(len(view), device=view.device)
                part = Reduction(tokens.features[view], everything, everything)
            assert part.assignment is not None
            into[view] = torch.where(part.assignment < 0, -1, part.assignment + offset)
            parts.append((part.features, view[part.anchors]))
            offset += len(part.features)
        return Reduction(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), into)

    def pick(self, attention: Tensor, budget: int | None) -> Tensor:
        """The kept tokens of a view of N, by descending attention [N]; a budget counts the extra token too."""
        total = len(attention)
        if budget is not None:
            count = total if budget >= total else budget - 1
        else:
            count = int(total * (outlier_share(attention) if self.mode == "adaptive" else self.ratio))
        return attention.argsort(descending=True, stable=True)[: max(count, 0)]

    def merge(self, features: Tensor, key: Tensor, attention: Tensor, picked: Tensor) -> Reduction:
        """Merge neighbours into the picked tokens and append the extra token: features [N, c], key [N, w]."""
        rest = self.unpicked(picked, len(features))
        candidates = torch.cat([picked, rest])
        x, weight = features.float(), attention.float()[:, None]
        extra = (weight * x)[rest].sum(0, keepdim=True)
        unit = torch.nn.functional.normalize(key.float(), dim=-1)
        similar = torch.bmm(unit[picked][None], unit[candidates].T[None])[0]
        similar.fill_diagonal_(-torch.inf)
        nearest = candidates[similar.topk(min(self.neighbours, len(candidates) - 1)).indices]
        updated = x[picked] + (weight[nearest] * x[nearest]).sum(1)
        left = rest if len(rest) else picked
        last = left[attention[left].argmax()[None]]
        assignment = torch.full((len(features),), -1, device=features.device)
        assignment[rest] = len(picked)
        assignment[picked] = torch.arange(len(picked), device=features.device)
        return Reduction(torch.cat([updated, extra]).to(features.dtype), torch.cat([picked, last]), assignment)

    def unpicked(self, picked: Tensor, total: int) -> Tensor:
        """The tokens that were not picked, ascending."""
        taken = torch.zeros(total, device=picked.device)
        taken[picked] = 1.0
        return taken.argsort(stable=True)[: total - len(picked)]

    # --- numbers ------------------------------------------------------------------------------------------------

    def picks(self, tokens: int, budget: int | None) -> int:
        """How many tokens of a view of `tokens` are picked where that is fixed."""
        if budget is None:
            return int(tokens * self.ratio)
        return tokens if budget >= tokens else max(budget - 1, 0)

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Any, architecture: Architecture) -> int:
        """The query's row of attention in each view, and the similarities of kept tokens and candidates."""
        width, flops = architecture.encoder_hidden, 0
        for tokens, kept in zip(views, left, strict=True):
            flops += ops.attention_flops(1, tokens + architecture.has_cls, 1, width)
            flops += 2 * (kept - 1) * tokens * width if 0 < kept < tokens else 0
        return flops

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        return self.replace(mode="fixed", ratio=retention, tokens=None)


def encoder_attention(query: Tensor, key: Tensor, has_cls: bool) -> Tensor:
    """Attention of the CLS token, or of the mean patch query, over the patches: q, k [(1 +) N, C] -> [N], float32."""
    row = query[:1] if has_cls else query.mean(0, keepdim=True)
    last = torch.tensor([len(key) - 1], device=key.device)
    weights = ops.attention_weights(row[None].float(), key[None].float(), last, key.shape[-1] ** -0.5)[0, 0]
    return weights[int(has_cls) :]


def outlier_share(attention: Tensor) -> float:
    """The share of values above Q3 + 1.5 · IQR."""
    first, third = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device))
    return (attention > third + 1.5 * (third - first)).sum().item() / len(attention)


def _spread(tokens: int | None, views: int) -> list[int | None]:
    """An exact budget spread evenly over the views, the first ones getting one more."""
    if tokens is None:
        return [None] * views
    return [max(1, tokens // views + (number < tokens % views)) for number in range(views)]
