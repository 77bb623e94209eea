"""FastV: an image is worth half its tokens after layer 2 (Chen et al., ECCV 2024, arXiv 2403.06764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer, UserError, Workload, ops

if TYPE_CHECKING:
    import torch

    from tokenzoo.method.events import DecoderLayer


@dataclass
class FastV(TokenReducer):
    """Before layer K, keep the visual tokens that the last prompt token attends to most.

    Score: attention weights of layer K-1 in the last token's row, averaged over heads. Of the V visual
    tokens that entered, `rank` stay, or round((1-R)·V) (banker's rounding, as in the released code); they keep order
    and positions. Layers before K see, and cache, everything.

    The released code runs layer K-1 in eager mode for its full attention map; here one row of it is computed. Its
    second path only masks; here tokens are dropped, and equal its in-place path.
    """

    K: Annotated[int, Field(ge=1, description="Layers that see every token; the cut comes after layer K - 1.")] = 2
    R: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens dropped.")] = 0.5
    rank: Annotated[int | None, Field(ge=0, description="Exact number kept, instead of R.")] = None

    name: ClassVar[str] = "fastv"

    def after_layer(self, layer: DecoderLayer) -> torch.Tensor | None:
        return layer.keep_best(self._kept(layer.entered), lambda: layer.attention("last")[:, 0].mean(0))

    def _kept(self, entered: int) -> int:
        return round((1 - self.R) * entered) if self.rank is None else self.rank

    def layers(self, num_layers: int) -> Sequence[int]:
        return (self.K - 1,) if num_layers > self.K else ()

    def check_model(self, family: Any, architecture: Any) -> None:
        if architecture.layers < self.K:
            raise UserError(f"FastV's K={self.K} exceeds the {architecture.layers} layers of {architecture.name}.")

    def schedule(self, workload: Workload) -> list[int]:
        self.check_model(None, workload.architecture)
        entered = workload.visual_tokens
        return ops.token_schedule(entered, {self.K - 1: self._kept(entered)}, workload.architecture.layers)

    def overhead(self, workload: Workload) -> int:
        """One row of attention."""
        architecture, schedule = workload.architecture, self.schedule(workload)
        pruning = {layer: self._kept(workload.visual_tokens) for layer in self.layers(architecture.layers)}
        return sum(
            ops.attention_flops(1, workload.text_tokens + schedule[i], architecture.heads, architecture.head_dim)
            for i in ops.acting_layers(schedule, pruning)
        )

    def at_retention(self, retention: float) -> FastV:
        return self.replace(R=1 - retention, rank=None)  # type: ignore[return-value]
