"""V2Drop: drop the visual tokens that a layer hardly moves (arXiv 2509.01552, CVPR 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer, UnreachableError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

#: The published stages: LLaVA-1.5-7B (32 layers) and Qwen2-VL-7B (28); other depths get the former's shares.
STAGES = {32: (3, 17, 22), 28: (3, 16, 22)}


@dataclass
class V2Drop(TokenReducer):
    """Before each layer of `layer_list`, keep max(1, int(n · ratio)) of the n visual tokens there: those that moved most.

    Score: ‖h_l - h_(l-1)‖₂, how far the layer before moved the token. Kept tokens keep order and positions. No attention
    is read. The default leaves half, half of those, and one token, as published for LLaVA-1.5-7B (202.8 of 576 on average).
    """

    layer_list: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None, Field(description="Full layers before each stage (null: by depth).")
    ] = None
    ratios: Annotated[tuple[Share, ...], Field(description="Share of the tokens present kept in each stage.")] = (0.5, 0.5, 0.0)

    name: ClassVar[str] = "v2drop"

    def check(self) -> None:
        stages = 3 if self.layer_list is None else len(self.layer_list)
        if stages != len(self.ratios):
            raise UserError(f"V2Drop needs one ratio for each stage: {stages} stages, {len(self.ratios)} ratios.")
        if self.layer_list is not None and list(self.layer_list) != sorted(set(self.layer_list)):
            raise UserError(f"V2Drop's layer_list must ascend, not {self.layer_list}.")

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        left, now = {}, entered
        for start, ratio in self.stages(layers):
            left[start - 1] = now = min(now, max(1, int(now * ratio)))
        return left

    def stages(self, layers: int) -> list[tuple[int, float]]:
        """How many layers run before each stage, and its ratio; a model too shallow for all stages has the last ones."""
        shares = STAGES.get(layers) or tuple(sorted({max(1, round(layers * start / 32)) for start in STAGES[32]}))
        starts = self.layer_list or shares
        return list(zip(starts, self.ratios[-len(starts) :], strict=True))

    def score(self, layer: DecoderLayer) -> Tensor:
        moved = layer.hidden_states[layer.visual].float() - layer.inputs[layer.visual].float()
        return moved.norm(dim=-1)

    def score_flops(self, tokens: int, architecture: object) -> int:
        return 0

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """One ratio for all stages such that a layer sees `retention` of the tokens on average."""
        starts = [start for start, _ in self.stages(layers)]
        spans = [after - before for before, after in zip(starts, [*starts[1:], layers], strict=True)]

        def mean(ratio: float) -> float:
            return (starts[0] + sum(span * ratio**stage for stage, span in enumerate(spans, 1))) / layers

        if retention < mean(0):
            raise UnreachableError(
                f"'v2drop' sees all tokens in {starts[0]} layers of {layers}, so a mean of {retention:.4g} is out of reach."
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) < retention else (low, middle)
        return self.replace(ratios=(round(high, 4),) * len(self.ratios))
