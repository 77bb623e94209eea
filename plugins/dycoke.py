"""DyCoke: keep of a frame what changed since the one before, and read a part of the cache (CVPR 2025, arXiv 2411.15024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from tokenzoo import PositionPolicy, Source, TokenReducer, UnreachableError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenzoo import Architecture, CacheRead, VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class State(NamedTuple):
    """What a decoding step chose: among which tokens, by which attention."""

    step: int
    visual: Tensor
    attention: Tensor
    chosen: Tensor


@dataclass
class DyCoke(TokenReducer):
    """Before the LLM, keep of three frames in four the int((1 - k) · P) of P tokens least like those of an earlier frame.

    Frame i + 1 is compared with frame i for i = 0, 2, 4, ...; frame i + 2 with frame i for i = 0, 4, 8, ... < T - 4.
    Compared are tokens of the same place, by cosine. Frames 0, 4, 8, ... stay whole, and so does, in the last window of
    four, its third frame. Nothing is averaged. Inside a reduced frame tokens come in ascending similarity, as released.

    With `p`, a second stage changes decoding and no prefill: from layer `layer` on, each generated token reads only the
    int((1 - p) · n) of the n visual tokens that entered which it attends to most in the layer before, mean over heads. Nothing
    is deleted. The tokens of the step before are read again where the cosine of the two steps' attention is `reuse` or more.

    Pictures are left as they are before the LLM. On purpose: of an odd number of frames the released code loses the last, here
    it stays; four frames or fewer make it crash, here they are compared in pairs. The released second stage forgets the
    tokens to be read again, reads everything then, and carries attention over to the next sample; here it does as intended.
    """

    k: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of a reduced frame that is dropped.")] = 0.7
    p: Annotated[Share | None, Field(description="Share of visual tokens that a decoding step leaves out (null: none).")] = None
    layer: Annotated[int, Field(ge=1, description="First layer that reads a part.")] = 3
    reuse: Annotated[float, Field(ge=-1, allow_inf_nan=False, description="Cosine from which tokens are read again.")] = 0.9
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

    # --- decoding -----------------------------------------------------------------------------------------------

    def read(self, entered: int, layers: int) -> dict[int, int]:
        return {} if self.p is None else dict.fromkeys(range(self.layer, layers), int((1 - self.p) * entered))

    def read_layers(self, layers: int) -> tuple[int, ...]:
        return () if self.p is None else (self.layer - 1,)

    def pick_read(self, step: CacheRead, count: int | None) -> Tensor:
        """The choice holds for all layers that have the same tokens; others (their cache was cut) choose among their own."""
        assert count is not None
        states: dict[int | None, State] = step.memory.setdefault("dycoke", {})
        latest = states.get(None)
        if latest is not None and latest.step == step.generated and latest.visual is step.visual:
            return latest.chosen
        attention, before = step.attention(self.layer - 1).mean(0), states.get(step.index)
        chosen = ops.top_indices(attention, count)
        if before is not None and before.visual is step.visual:
            again = torch.cosine_similarity(attention, before.attention, dim=0) >= self.reuse
            chosen = torch.where(again, before.chosen, chosen)
        states[step.index] = states[None] = State(step.generated, step.visual, attention, chosen)
        return chosen

    def read_flops(self, tokens: Sequence[int], architecture: Architecture) -> int:
        return ops.attention_flops(1, tokens[self.layer - 1], architecture.heads, architecture.head_dim)

    def reduce_flops(self, views: Any, left: Any, source: Any, architecture: Any) -> int:
        return 0

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """One frame of four is whole, so a quarter is the least."""
        if retention < 0.25:
            raise UnreachableError(f"'dycoke' keeps every fourth frame whole, so a mean of {retention:.4g} is out of reach.")
        return self.replace(k=round(1 - (4 * retention - 1) / 3, 6))
