"""PyramidDrop: drop image tokens stage by stage (Xing et al., CVPR 2025, arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, TokenReducer, UnreachableError, UserError, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class PyramidDrop(TokenReducer):
    """After the first `layer_list[s]` layers, keep int(V · ratios[s]) of the V visual tokens that entered.

    Score: the attention weights that the NEXT layer's norm, projections and rotary embedding give the
    last prompt token's query, averaged over heads. Kept tokens stay in order. `layer_list` counts layers: 8 means
    that layers 0..7 see everything and layer 8 is the first to see less (the released code's "after layer 8");
    None, the default, puts the stages at quarters of the depth, which is 8, 16, 24 of 32. `position`: "renumber"
    gives every stage 0..n-1 anew, as released; models with M-RoPE keep theirs in any case.
    """

    layer_list: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(description="Full layers before each stage (null: a quarter, half and three quarters of the depth)."),
    ] = None
    ratios: Annotated[tuple[Share, ...], Field(description="Share of V left in each stage.")] = (0.5, 0.25, 0.125)
    position: Annotated[PositionPolicy, Field(description="Position ids after each stage.")] = "renumber"

    name: ClassVar[str] = "pdrop"
    text_aware: ClassVar[bool] = True

    def check(self) -> None:
        stages = 3 if self.layer_list is None else len(self.layer_list)
        if stages != len(self.ratios):
            raise UserError(f"PDrop needs one ratio for each stage: {stages} stages, {len(self.ratios)} ratios.")
        if self.layer_list is not None and list(self.layer_list) != sorted(set(self.layer_list)):
            raise UserError(f"PDrop's layer_list must ascend, not {self.layer_list}.")
        if list(self.ratios) != sorted(self.ratios, reverse=True):
            raise UserError(f"PDrop's ratios must not increase, {self.ratios} do: dropped tokens cannot come back.")

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        starts = self.layer_list or tuple(layers * stage // 4 for stage in (1, 2, 3) if layers * stage // 4)
        return {start - 1: int(entered * ratio) for start, ratio in zip(starts, self.ratios[-len(starts) :], strict=True)}

    def score(self, layer: DecoderLayer) -> Tensor:
        return layer.next_attention("last")[:, 0].mean(0)

    def score_flops(self, tokens: int, architecture: Architecture) -> int:
        width, heads = architecture.head_dim, architecture.heads + tokens * architecture.kv_heads
        return 2 * architecture.hidden * width * heads + ops.attention_flops(1, tokens, architecture.heads, width)

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """Ratios x, x², x³ such that four equally long stages keep `retention` of the tokens on average."""
        if retention < 0.25:
            raise UnreachableError(
                f"'pdrop' sees all tokens in a quarter of its layers, so a mean of {retention} is out of reach."
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if 1 + middle + middle**2 + middle**3 < 4 * retention else (low, middle)
        ratios = tuple(round(high**stage, 4) for stage in (1, 2, 3))
        return self.replace(layer_list=None, ratios=ratios)
