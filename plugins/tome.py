"""ToMe: similar patches merged inside the vision encoder (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023,
arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, TokenReducer, UserError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from tokenzoo import EncoderLayer


@dataclass
class ToMe(TokenReducer):
    """In every encoder layer, between attention and MLP, merge the r most similar pairs of patches of each view.

    **Matching**: A are the tokens at even places of the sequence, B those at odd ones; the CLS token stands at place 0 and is
    never merged. Each token of A finds the one of B of greatest cosine of keys (of this layer, mean over heads). The r of
    greatest cosine go into theirs; r is at most half of the patches. **Merging**: the mean weighted by size, the number of
    patches that a token stands for. Order: the other tokens of A (as they stood, or without CLS by descending cosine), then all
    of B. **Proportional attention**: later layers add log(size) to the logits of a token's key.

    r is a constant; with `inflection` f it rises or falls evenly from int(r · (1 - f)) in the first layer to
    2r - int(r · (1 - f)) in the last; or it is a list of numbers, one for each layer, 0 where it ends. `retention` leaves so
    large a share of a view's patches instead: by the least constant r that reaches it, less in the last layer that merges. Only
    layers whose output goes to the projector count, 23 of 24 in a LLaVA-1.5.
    """

    r: Annotated[
        int | tuple[Annotated[int, Field(ge=0)], ...], Field(description="Patches merged in each layer: one number, or a list.")
    ] = 16
    inflection: Annotated[
        float, Field(ge=-1, le=1, allow_inf_nan=False, description="From -1 (falls from 2r to 0) to 1 (rises from 0 to 2r).")
    ] = 0.0
    retention: Annotated[
        float | None, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's patches left, instead of r.")
    ] = None
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "tome"
    proportional_attention: ClassVar[bool] = True

    def check(self) -> None:
        if isinstance(self.r, int) and self.r < 0:
            raise UserError(f"r={self.r} of 'tome' must not be negative. Run 'tokenzoo show tome'.")
        if self.inflection and not isinstance(self.r, int):
            raise UserError("inflection of 'tome' bends a constant r; r is a list already. Leave one of them out.")

    def encoder_kept(self, patches: int, architecture: Architecture) -> dict[int, int]:
        layers = architecture.feature_layer + 1
        if self.retention is not None:
            target = ops.share_of(patches, self.retention)
            merges = [constant_to(patches, target, layers)] * layers
        else:
            target, merges = 0, self.merges(layers)
        kept = {}
        for layer, merged in enumerate(merges):
            patches -= min(merged, patches // 2, max(0, patches - target))
            kept[layer] = patches
        return kept

    def merges(self, layers: int) -> list[int]:
        """r in each of so many layers."""
        if not isinstance(self.r, int):
            return [*self.r, *[0] * layers][:layers]
        first = int(self.r * (1 - self.inflection))
        step = 2 * (self.r - first) / max(layers - 1, 1)
        return [int(first + step * layer) for layer in range(layers)]

    def encoder_pick(self, layer: EncoderLayer, count: int | None) -> Reduction:
        assert count is not None
        x, sizes, cls = layer.hidden_states, layer.sizes, int(layer.has_cls)
        own, other = slice(cls, None, 2), slice(1 - cls, None, 2)  # A without CLS, and B, among the patches
        place = torch.arange(layer.tokens, device=x.device).expand(len(x), -1)
        sources, targets = place[:, own], place[:, other]
        unit = torch.nn.functional.normalize(layer.keys().float(), dim=-1)
        best, into = torch.bmm(unit[:, own], unit[:, other].transpose(1, 2)).max(-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
        merged, alone = order.split([layer.tokens - count, order.shape[1] - (layer.tokens - count)], dim=1)
        alone = alone.sort().values if cls else alone
        goes = into.gather(1, merged)
        # to each target the sum of x · size of what goes into it, itself included
        one_hot = (goes[:, None] == torch.arange(targets.shape[1], device=x.device)[:, None]).float()
        weighted = x.float() * sizes[..., None]
        view = torch.arange(len(x), device=x.device)[:, None]
        added = torch.bmm(one_hot, weighted[view, sources.gather(1, merged)])
        total = sizes[:, other] + torch.bmm(one_hot, sizes.gather(1, sources.gather(1, merged))[..., None])[..., 0]
        mean = ((weighted[:, other] + added) / total[..., None]).to(x.dtype)
        stay = sources.gather(1, alone)
        outputs = torch.arange(count, device=x.device).expand(len(x), -1)
        assignment = torch.empty_like(place)
        assignment = assignment.scatter(1, targets, outputs[:, alone.shape[1] :]).scatter(1, stay, outputs[:, : alone.shape[1]])
        assignment = assignment.scatter(1, sources.gather(1, merged), goes + alone.shape[1])
        return Reduction(torch.cat([x[view, stay], mean], 1), torch.cat([stay, targets], 1), assignment)


def constant_to(patches: int, target: int, layers: int) -> int:
    """The least r that, merged in each of so many layers as far as pairs go, leaves no more than `target` patches.

    Where none does, half of the patches: as many as can be.
    """
    for r in range(patches // 2):
        left = patches
        for _ in range(layers):
            left -= min(r, left // 2)
        if left <= target:
            return r
    return patches // 2
