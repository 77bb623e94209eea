"""VidCom2: keep the most distinct tokens, more in the most distinct frames (Liu et al., EMNLP 2025, arXiv 2505.14454)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import PositionPolicy, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

#: The widths a of the Gaussians by which likeness is measured.
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)


@dataclass
class VidCom2(TokenReducer):
    """Before the LLM, keep the tokens that are least like their video's and their frame's mean.

    x: the tokens, on the half of the channels with the lowest variance over the video, L2-normalised. With the
    likeness g(x, c) = Σ_a exp(-‖x - c‖² / 2a), a in WIDTHS: V = g(x, mean of the video), F = g(x, mean of the frame).
    Frame t of T with P tokens keeps scale_t · P of them, those with the smallest V + F, in raster order; scale_t =
    min(1, R · (1 + p_t - 1/T)), p = softmax(u / 0.01), u_t = -mean V of frame t, R = `retention`. An image is a video
    of as many frames as it has views.

    `rounding="exact"` shares round(R · tokens) out by these scales. "released" rounds each frame's own number (at
    least 1), so that the picture decides the sum, which is R · tokens give or take half a token a frame. Newlines stay
    where they stand; the released code puts those of LLaVA-Video's frames behind the frame's tokens.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of visual tokens kept.")] = 0.25
    rounding: Annotated[
        Literal["exact", "released"], Field(description="Share an exact budget out, or round frame by frame.")
    ] = "exact"
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "vidcom2"

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> int | None:
        if self.rounding == "released" and self.retention < 1:
            return None
        return ops.share_of(sum(views), self.retention)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        frame, sizes = tokens.view, tokens.view_counts()
        x = distinct_channels(tokens.features.float())
        means = _means(x, frame, len(sizes))
        video_score, frame_score = likeness(x, x.mean(0)), likeness(x, means[frame])
        size = torch.tensor(sizes, device=frame.device)
        distinctness = -_means(video_score[:, None], frame, len(sizes))[:, 0]
        share = size * self.scales(distinctness.masked_fill(size == 0, -torch.inf))
        rounded = share.round().long().clamp(min=1)
        counts = rounded if tokens.count is None else ops.apportion(share, sizes, tokens.count, least=1)
        return ops.top_of_groups(-video_score - frame_score, frame, counts, tokens.count).sort().values

    def scales(self, distinctness: Tensor) -> Tensor:
        """The share of each frame's tokens that is kept, by the frame's distinctness u [frames] (-inf: an empty frame)."""
        bonus = (distinctness / 0.01).softmax(0)
        return (self.retention * (1 + bonus - 1 / distinctness.isfinite().sum())).clamp(max=1)


def distinct_channels(x: Tensor) -> Tensor:
    """x [tokens, d] on the d // 2 channels with the lowest variance, L2-normalised."""
    lowest = x.var(0, correction=0).argsort(stable=True)[: x.shape[1] // 2]
    return torch.nn.functional.normalize(x[:, lowest], dim=-1)


def likeness(x: Tensor, centre: Tensor) -> Tensor:
    """g(x, centre) of each of x [tokens, d]."""
    squares = (x - centre).square().sum(-1)
    return torch.stack([(-squares / (2 * width)).exp() for width in WIDTHS]).sum(0)


def _means(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean of each group of x [tokens, d]; 0 for an empty one."""
    sums = x.new_zeros(groups, x.shape[1]).index_add_(0, group, x)
    sizes = x.new_zeros(groups).index_add_(0, group, torch.ones_like(group, dtype=x.dtype))
    return sums / sizes.clamp(min=1)[:, None]
