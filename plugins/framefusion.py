"""FrameFusion: merge what stays the same from frame to frame, then prune by attention (arXiv 2501.01986, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import ActsAfter, Reduction, TokenReducer, UnreachableError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class Progress:
    """How far a sample is: the share of the tokens that each call merged, whether it merges on, whether it will prune."""

    shares: list[float] = field(default_factory=list)
    merging: bool = True
    pruning: bool = True


@dataclass
class FrameFusion(TokenReducer):
    """Before layer 0, and after the attention of layers 0, 1, …: merge, then prune once, so that a layer sees `cost` on average.

    **Merge.** A token of a video is compared with the one before it at its place in the frame, by the cosine of their hidden
    states. From `similarity` on it is folded into that one; a run of such tokens becomes one mean. Merging ends after a call
    that merges less than `least_merged` of the tokens, or with the most similar tokens alone once they suffice. **Prune.**
    After the next layer's attention, the tokens that the prompt's last token attends to most stay, mean over heads: as many
    as make the layers behind it use up what `cost` · layers has left.

    Kept tokens keep order and positions. Newlines count as tokens, are never merged and may be pruned. How many tokens each
    layer sees depends on the video. A picture has no frame before it, so it is only pruned, after layer 0's attention.

    Ours on purpose: the budget spans the model's own layers (28 are written into the released code); where merging has spent
    it all, every visual token goes (released: an error); several videos in a prompt share one budget, each compared with itself.
    """

    cost: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Visual tokens that a layer sees on average.")] = (
        0.3
    )
    similarity: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, description="Least cosine of merged tokens.")] = 0.6
    least_merged: Annotated[Share, Field(description="Merging ends with a call that merges a smaller share.")] = 0.1

    name: ClassVar[str] = "framefusion"
    knob: ClassVar[str] = "cost"
    text_aware: ClassVar[bool] = True
    acts_after: ClassVar[ActsAfter] = "attention"

    def kept(self, entered: int, layers: int) -> dict[int, None]:
        return {} if self.cost == 1 else dict.fromkeys(range(-1, layers - 1))

    def pick(self, layer: DecoderLayer, count: int | None) -> Tensor | Reduction:
        progress, tokens = layer.memory.setdefault("framefusion", Progress()), len(layer.visual)
        device = layer.visual.device
        if len(progress.shares) <= layer.index:  # the call before merged nothing, and is no step of a recorded run
            progress.merging = False
        missing = self.missing(progress.shares, layer.num_layers)
        if progress.merging and count is not None:  # a recorded run is priced: merging takes no product
            self.merges_all(progress, 1 - count / tokens, missing)
            return torch.arange(count, device=device)
        if progress.merging:
            return self.merge(layer, progress, missing)
        left = tokens
        if progress.pruning:
            left = round(tokens * (1 - missing)) if count is None else count
            progress.pruning = False
        if left in (0, tokens):
            return torch.arange(left, device=device)
        return ops.top_indices(layer.attention("last")[:, 0].mean(0)[layer.visual], left)

    def missing(self, shares: list[float], layers: int) -> float:
        """The share of the tokens now there that must go, so that the layers to come use up what is left of the budget."""
        left, used = 1.0, 0.0
        for share in shares:
            left *= 1 - share
            used += left
        return min(1.0, max(0.0, 1 - (layers * self.cost - used) / ((layers - len(shares)) * left)))

    def merges_all(self, progress: Progress, share: float, missing: float) -> bool:
        """Note that a call can merge this share, and whether it does: where it is more than is missing, only the most similar
        tokens merge, and no later call does anything."""
        if share >= missing:
            progress.merging = progress.pruning = False
            return False
        progress.shares.append(share)
        progress.merging = share >= self.least_merged
        return True

    def merge(self, layer: DecoderLayer, progress: Progress, missing: float) -> Tensor | Reduction:
        """Merge one call's tokens."""
        tokens = len(layer.visual)
        order, states, similarity = self.in_time(layer)
        merged = similarity >= self.similarity
        found = int(merged.sum())
        if not self.merges_all(progress, found / tokens, missing):
            found = int(missing * tokens)
            most = similarity.argsort(descending=True, stable=True)[:found]
            merged = torch.zeros_like(merged).scatter(0, most, 1)
        if not found:
            return torch.arange(tokens, device=order.device)
        first = ~merged
        means = ops.mean_by_assignment(states[None], first.cumsum(0)[None] - 1, tokens - found)[0]
        return Reduction(means, order[first])

    def in_time(self, layer: DecoderLayer) -> tuple[Tensor, Tensor, Tensor]:
        """The visual tokens by place in the frame and then by time: their indices, their states, and the cosine of each with
        the one before it at its place (-2 where there is none). A token that is no video's has a place of its own."""
        places, tokens = layer.places(), len(layer.visual)
        videos = torch.tensor([kind == "video" for kind in places.kinds], device=layer.visual.device)
        moment = places.view.add(places.patch, alpha=1 << 20).add(places.source, alpha=1 << 40)
        alone = torch.arange(-tokens << 20, 0, 1 << 20, device=moment.device)
        moment, order = torch.where(videos[places.source] & (places.patch >= 0), moment, alone).sort(stable=True)
        place, states = moment >> 20, layer.hidden_states[layer.visual[order]]
        unit = torch.nn.functional.normalize(states.float(), dim=-1)
        similarity = (unit[1:] * unit[:-1]).sum(-1).masked_fill(place[1:] != place[:-1], -2)
        return order, states, torch.nn.functional.pad(similarity, (1, 0), value=-2)

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        if retention * layers < 1:
            raise UnreachableError(
                f"'framefusion' may see all tokens in one layer of {layers}, so a mean of {retention:.4g} is out of reach."
            )
        return self.replace(cost=retention)
