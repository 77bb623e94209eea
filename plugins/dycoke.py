"""DyCoke, stage 1: keep of a frame what changed since the one before (Tao et al., CVPR 2025, arXiv 2411.15024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import PositionPolicy, Source, TokenReducer, UnreachableError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens


@dataclass
class DyCoke(TokenReducer):
    """Before the LLM, keep of three frames in four the int((1 - k) · P) of P tokens least like those of an earlier frame.

    Frame i + 1 is compared with frame i for i = 0, 2, 4, ...; frame i + 2 with frame i for i = 0, 4, 8, ... < T - 4.
    Compared are tokens of the same place, by cosine. Frames 0, 4, 8, ... stay whole, and so does, in the last window of
    four, its third frame. Nothing is averaged. Inside a reduced frame tokens come in ascending similarity, as released.

    Pictures are left as they are. On purpose: of an odd number of frames the released code loses the last, here it stays;
    four frames or fewer make it crash, here they are compared in pairs. Its second stage, which shows each generated
    token a part of the cache only, is not here: it changes no prefill.
    """

    k: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of a reduced frame that is dropped.")] = 0.7
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "dycoke"
    whole_views: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Source, architecture: Any) -> list[int]:
        references = self.references(len(views)) if source.kind == "video" else {}
        return [int((1 - self.k) * tokens) if frame in references else tokens for frame, tokens in enumerate(views)]

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.left is not None
        kept = tokens.views()
        frames, references = [tokens.features[view] for view in kept], self.references(len(kept))
        for frame, reference in references.items():
            similarity = ops.frame_similarity(torch.stack([frames[reference], frames[frame]]))[0]
            kept[frame] = kept[frame][similarity.argsort(stable=True)[: tokens.left[frame]]]
        return torch.cat(kept)

    def references(self, frames: int) -> dict[int, int]:
        """Which frames are reduced, and the frame that each is compared with."""
        pairs = {first + 1: first for first in range(0, frames - 1, 2)}
        return pairs | {first + 2: first for first in range(0, frames - 4, 4)}

    def reduce_flops(self, views: Any, left: Any, source: Any, architecture: Any) -> int:
        return 0

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """One frame of four is whole, so a quarter is the least."""
        if retention < 0.25:
            raise UnreachableError(f"'dycoke' keeps every fourth frame whole, so a mean of {retention:.4g} is out of reach.")
        return self.replace(k=round(1 - (4 * retention - 1) / 3, 6))
