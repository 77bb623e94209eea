"""`pool`: average neighbouring visual tokens, what LLaVA-OneVision itself does to video frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import DataDependentError, PositionPolicy, Reduction, Source, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from tokenzoo import VisualTokens


@dataclass
class AveragePooling(TokenReducer):
    """Before the LLM, replace each stride × stride window of every view's grid by its mean.

    Windows at the border average what lies inside the grid. A pooled token stands where its window's middle was.
    """

    stride: Annotated[int, Field(ge=1, description="Side of the window that becomes one token.")] = 2
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "pool"

    whole_views: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> list[int]:
        grids = source.grids or [_square(tokens, self.stride) for tokens in views]
        return [math.ceil(height / self.stride) * math.ceil(width / self.stride) for height, width in grids]

    def reduce(self, tokens: VisualTokens) -> Reduction:
        features, anchors, windows, offset, outputs = [], [], [], 0, 0
        for view, grid in zip(tokens.views(), tokens.grids, strict=True):
            features.append(ops.average_pool(tokens.features[view][None], grid, self.stride)[0])
            rows, columns = (math.ceil(side / self.stride) for side in grid)
            row, column = torch.arange(grid[0]) // self.stride, torch.arange(grid[1]) // self.stride
            windows.append((row[:, None] * columns + column).flatten() + outputs)
            middle = torch.arange(rows) * self.stride + self.stride // 2, torch.arange(columns) * self.stride
            middle_column = (middle[1] + self.stride // 2).clamp(max=grid[1] - 1)
            anchors.append((middle[0].clamp(max=grid[0] - 1)[:, None] * grid[1] + middle_column).flatten() + offset)
            offset, outputs = offset + len(view), outputs + rows * columns
        device = tokens.features.device
        return Reduction(torch.cat(features), torch.cat(anchors).to(device), torch.cat(windows).to(device))

    def reduce_flops(self, views: Any, left: Any, source: Any, architecture: Any) -> int:
        return 0

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """The stride whose square is nearest to 1 / retention."""
        return self.replace(stride=max(1, round(retention**-0.5)))


def _square(tokens: int, stride: int) -> tuple[int, int]:
    """The grid of a view of which only the number of tokens is known."""
    side = math.isqrt(tokens)
    if side * side < tokens and stride > 1:
        raise DataDependentError(f"'pool' cannot tell the grid of {tokens} tokens, which is not square.")
    return (side, side) if side * side == tokens else (1, tokens)
