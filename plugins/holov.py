"""HoloV: share the tokens out over strips of the picture by their attention (arXiv 2510.02912, NeurIPS 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class HoloV(TokenReducer):
    """Before the LLM, keep T = round(retention · N) of N tokens: of each strip as many as its mean attention asks for.

    Attention a: of the CLS token in the encoder layer that goes to the projector (without CLS the mean over all queries in
    the last layer), mean over heads. The N tokens, all views of an image or video after one another, are cut into C strips
    of equal length, C = int(1024 / 576 · N / T) (or `crops`). With p = mean a of a strip / sum over strips, a strip's
    quota is floor(p · T), and one more for the strips of largest p until T are given out; it keeps its tokens of highest
    a. Strip after strip; inside one by descending attention (`order="attention"`, as released; a strip that is kept
    whole stays in order), or "raster". Quotas above a strip's length are lost, and zero vectors fill up to T
    (`overflow="zeros"`, as released), or other strips get them ("redistribute").

    The paper adds each token's visual context (the variance of its similarities) to the score. In the released code it
    is scaled so that its mean over a strip is 9 % of the mean attention whatever the picture, so it never decides; it
    is left out here. For Qwen2.5-VL the released code reads scores in window order; here windows are undone.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.3333
    crops: Annotated[int | None, Field(ge=1, description="Strips that share the budget (null: by the budget).")] = None
    order: Annotated[Literal["attention", "raster"], Field(description="Order of the kept tokens of a strip.")] = "attention"
    overflow: Annotated[Literal["zeros", "redistribute"], Field(description="What becomes of quotas above a strip's length.")] = (
        "zeros"
    )
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "holov"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> int:
        return min(sum(views), max(1, round(self.retention * sum(views))))

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor | Reduction:
        attention, count = tokens.encoder_saliency().mean(0), tokens.count or 0
        kept = self.choose(attention, count)
        missing = count - len(kept)
        if not missing:
            return kept
        zeros = tokens.features.new_zeros(missing, tokens.features.shape[1])
        assignment = torch.full_like(kept[:1], -1).repeat(len(attention))
        assignment[kept] = torch.arange(len(kept), device=kept.device)
        last = torch.full_like(kept[:1], len(attention) - 1).repeat(missing)
        return Reduction(torch.cat([tokens.features[kept], zeros]), torch.cat([kept, last]), assignment)

    def choose(self, attention: Tensor, count: int) -> Tensor:
        """At most `count` of the tokens with this attention [N], strip after strip."""
        place = torch.arange(len(attention), device=attention.device)
        crops = min(self.crops or max(1, int(1024 / 576 * len(attention) / count)), len(attention))
        sizes = len(attention) // crops + (place[:crops] < len(attention) % crops)
        strip = place[:crops].repeat_interleave(sizes)
        mean = torch.zeros_like(attention[:crops]).index_add_(0, strip, attention) / sizes
        quotas = self.quotas(mean / mean.sum(), sizes, count)
        whole = (quotas >= sizes)[strip]
        kept = ops.top_of_groups(torch.where(whole, -place, attention), strip, quotas)
        return kept if self.order == "attention" else kept.sort().values

    def quotas(self, share: Tensor, sizes: Tensor, count: int) -> Tensor:
        """How many tokens each strip may keep, by its share of the attention."""
        if self.overflow == "redistribute":
            return ops.apportion(share * count, sizes, count)
        quotas = (share * count).floor().long()
        rank = share.argsort(descending=True, stable=True).argsort()
        return quotas + (rank < count - quotas.sum())
