"""PyramidDrop: drop image tokens stage by stage (Xing et al., CVPR 2025, arXiv 2410.17247)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer, UnreachableError, UserError, Workload, ops
from tokenzoo.method.reducer import PositionPolicy

if TYPE_CHECKING:
    import torch

    from tokenzoo.method.events import DecoderLayer

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

    @property
    def layer_positions(self) -> PositionPolicy:  # type: ignore[override]
        return self.position

    def check(self) -> None:
        stages = 3 if self.layer_list is None else len(self.layer_list)
        if stages != len(self.ratios):
            raise UserError(f"PDrop needs one ratio for each stage: {stages} stages, {len(self.ratios)} ratios.")
        if self.layer_list is not None and list(self.layer_list) != sorted(set(self.layer_list)):
            raise UserError(f"PDrop's layer_list must ascend, not {self.layer_list}.")
        if list(self.ratios) != sorted(self.ratios, reverse=True):
            raise UserError(f"PDrop's ratios must not increase, {self.ratios} do: dropped tokens cannot come back.")

    def check_model(self, family: Any, architecture: Any) -> None:
        if self.layer_list and self.layer_list[-1] > architecture.layers:
            raise UserError(
                f"PDrop's layer_list {self.layer_list} exceeds the {architecture.layers} layers of {architecture.name}."
            )

    def after_layer(self, layer: DecoderLayer) -> torch.Tensor | None:
        count = self._kept(layer.entered, layer.num_layers)[layer.index]
        return layer.keep_best(count, lambda: layer.next_attention("last")[:, 0].mean(0))

    def _kept(self, entered: int, num_layers: int) -> dict[int, int]:
        """For each layer after which tokens are dropped, how many stay."""
        starts = self.layer_list or tuple(num_layers * stage // 4 for stage in (1, 2, 3))
        stages = zip(starts, self.ratios, strict=True)
        return {start - 1: int(entered * ratio) for start, ratio in stages if 1 <= start < num_layers}

    def layers(self, num_layers: int) -> Sequence[int]:
        return tuple(self._kept(0, num_layers))

    def schedule(self, workload: Workload) -> list[int]:
        self.check_model(None, workload.architecture)
        entered, layers = workload.visual_tokens, workload.architecture.layers
        return ops.token_schedule(entered, self._kept(entered, layers), layers)

    def overhead(self, workload: Workload) -> int:
        """At each stage the next layer's q of one row, its k of all rows, and one row of attention."""
        architecture, schedule = workload.architecture, self.schedule(workload)
        pruning = self._kept(workload.visual_tokens, architecture.layers)
        flops = 0
        for i in ops.acting_layers(schedule, pruning):
            tokens, width = workload.text_tokens + schedule[i], architecture.head_dim
            flops += 2 * architecture.hidden * width * (architecture.heads + tokens * architecture.kv_heads)
            flops += ops.attention_flops(1, tokens, architecture.heads, width)
        return flops

    def at_retention(self, retention: float) -> PyramidDrop:
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
        return self.replace(layer_list=None, ratios=ratios)  # type: ignore[return-value]
