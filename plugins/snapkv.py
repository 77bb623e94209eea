"""SnapKV: a layer caches what the end of the prompt attends to (Li et al., NeurIPS 2024, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokenzoo import Architecture, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import CachedLayer


@dataclass
class SnapKV(TokenReducer):
    """After the prompt, keep in each layer's KV cache the share `retention` of the visual tokens that entered.

    Score of a token: its attention weight in that layer, mean over the prompt's last `window` rows and all heads; of that the
    largest among the `pooling` tokens around it. The prefill is left as it is; every layer keeps its own tokens.

    Published SnapKV chooses among all tokens but the window, for each head its own. Here text always stays, and heads share
    one choice, so that the caches of all heads are equally long, as transformers' cache wants them.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of visual tokens cached.")] = 0.25
    window: Annotated[int, Field(ge=1, description="Rows at the end of the prompt whose attention counts.")] = 32
    pooling: Annotated[int, Field(ge=1, description="Tokens around one whose largest score it takes.")] = 7

    name: ClassVar[str] = "snapkv"
    text_aware: ClassVar[bool] = True

    def cached(self, entered: int, layers: int) -> dict[int, int]:
        return dict.fromkeys(range(layers), round(self.retention * entered))

    def query_rows(self) -> int:
        return self.window

    def pick_cached(self, layer: CachedLayer, count: int | None) -> Tensor:
        assert count is not None
        score = layer.attention().mean((0, 1))[layer.visual]
        before = (self.pooling - 1) // 2
        padded = torch.nn.functional.pad(score, (before, self.pooling - 1 - before), value=-torch.inf)
        return ops.top_indices(padded.unfold(0, self.pooling, 1).amax(-1), count)

    def cached_flops(self, tokens: int, architecture: Architecture) -> int:
        return ops.attention_flops(min(self.window, tokens), tokens, architecture.heads, architecture.head_dim)
