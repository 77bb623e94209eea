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
        return ops.share_of(sum(views), self.retention)

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.saliency_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor | Reduction:
        attention, count = tokens.encoder_saliency().mean(0), tokens.count or 0
        sizes = self.strips(len(attention), count)
        strip = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(attention.device)
        size, place = torch.tensor(sizes, device=strip.device), torch.arange(len(strip), device=strip.device)
        mean = torch.zeros_like(size, dtype=attention.dtype).index_add_(0, strip, attention) / size
        quotas = torch.minimum(self.quotas(mean / mean.sum(), sizes, count), size)
        worth = torch.where((quotas >= size)[strip], -place, attention)  # a strip that is kept whole stays in order
        kept, real = ops.top_of_groups(worth, strip, quotas, count), place[:count] < quotas.sum()
        if self.order == "raster":
            kept = kept[torch.where(real, kept, len(place)).argsort(stable=True)]
        if self.overflow == "redistribute":
            return kept
        features = torch.where(real[:, None], tokens.features[kept], 0)
        assignment = torch.full_like(place, -1).scatter(0, kept, torch.where(real, place[:count], -1))
        return Reduction(features, torch.where(real, kept, len(place) - 1), assignment)

    def strips(self, total: int, count: int) -> list[int]:
        """How long each strip is: equally, the first ones one token longer where that is not possible."""
        strips = min(self.crops or max(1, int(1024 / 576 * total / count)), total)
        return [total // strips + (number < total % strips) for number in range(strips)]

    def quotas(self, share: Tensor, sizes: list[int], count: int) -> Tensor:
        """How many tokens each strip is given, by its share of the attention."""
        if self.overflow == "redistribute":
            return ops.apportion(share * count, sizes, count)
        quotas = (share * count).floor().long()
        rank = share.argsort(descending=True, stable=True).argsort()
        return quotas + (rank < count - quotas.sum())
