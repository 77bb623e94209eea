"""AIM: merge similar visual tokens before the LLM, prune them inside it (Zhong et al., ICCV 2025, arXiv 2412.03248)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, Reduction, Source, TokenReducer, UserError, ops

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer, VisualTokens

#: l1 and l2 of the paper: Qwen2-7B (28 layers) and Vicuna-7B (32 layers); other depths get the former's shares.
WINDOWS = {28: (14, 22), 32: (13, 21)}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass
class AIM(TokenReducer):
    """Adaptive inference: token merging and PageRank pruning.

    **Merge**, each view (image, frame) on its own, in rounds that at most halve it until ceil(retention · t) of its t
    tokens are left (`rounding="down"`: floor, as the paper's tables count). Even tokens are paired with their most
    similar odd token (`ops.bipartite_match`), merged ones become the plain mean. `merge_at="auto"`: before the
    projector by the last encoder layer's keys where the encoder has a CLS token and the image is one view
    (LLaVA-1.5), else as the embeddings enter the LLM, by the embeddings themselves (LLaVA-OneVision).

    **Prune**: layer i+1 sees int(rate(i) · V) of the V visual tokens that entered, those of highest importance after
    layer i (`layer.importance`), with rate(i) = max(0, 1 - (i - l1 + 1) · slope) from layer l1 on and slope = 1 / (l2
    - l1); l1 and l2 are the paper's for 28 and 32 layers and keep the former's shares at other depths. Where
    `prune_before=True`, pruning comes one layer earlier: layer i itself sees rate(i), which is how the paper's tables
    are priced. Text is never pruned, and pruning keeps positions. `position`: after merging they are renumbered, as in
    the released code, or kept (a merged token has that of the token it was merged into).

    The released code masks instead of dropping, so masked tokens still vote in the first PageRank iteration of later
    layers; it protects the first sample's text in every sample of a batch, and left padding turns its scores NaN.
    """

    retention: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens left after merging.")
    ] = 0.25
    l1: Annotated[int | None, Field(ge=0, description="First layer after which tokens are pruned (null: by depth).")] = None
    l2: Annotated[int | None, Field(ge=1, description="Layer from which no visual token is left (null: by depth).")] = None
    slope: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Share pruned per layer (null: 1 / (l2 - l1)).")
    ] = None
    prune_before: Annotated[bool, Field(description="Prune one layer earlier, as the paper's tables are priced.")] = False
    rounding: Annotated[Literal["up", "down"], Field(description="How retention · tokens is rounded.")] = "up"
    merge_at: Annotated[
        Literal["auto", "before_projector", "pre_llm"], Field(description="Where tokens are merged (auto: by the encoder).")
    ] = "auto"
    temperature: Annotated[Positive, Field(description="Softmax temperature of the attention graph.")] = 0.1
    iterations: Annotated[int, Field(ge=0, description="Rounds of PageRank.")] = 5
    position: Annotated[PositionPolicy, Field(description="Position ids after merging: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "aim"
    text_aware: ClassVar[bool] = True

    def check(self) -> None:
        if self.l1 is not None and self.l2 is not None and self.l2 <= self.l1:
            raise UserError(f"AIM prunes from layer l1 to l2, so l2={self.l2} must be greater than l1={self.l1}.")
        if self.prune_before and self.l1 == 0:
            raise UserError("AIM with prune_before=True needs l1 >= 1: there is no layer before layer 0.")

    def check_model(self, architecture: Architecture) -> None:
        self._window(architecture.layers)

    # --- merging ------------------------------------------------------------------------------------------------

    def early(self, source: Source, architecture: Architecture) -> bool:
        one_view = len(source.before_projector) == 1
        return self.merge_at == "before_projector" or (self.merge_at == "auto" and architecture.has_cls and one_view)

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> list[int]:
        return [self._target(tokens) for tokens in views]

    def reduce(self, tokens: VisualTokens) -> Reduction:
        metric = None
        if tokens.early:
            metric = tokens.encoder_query_key(-1)[1][:, int(tokens.has_cls) :].flatten(0, 1)
            metric = metric if tokens.anchors is None else metric[tokens.anchors]
        return ops.merge_views(tokens.features, metric, tokens.views(), self._removals)

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        by_keys = self.merge_at == "before_projector" or (self.merge_at == "auto" and architecture.has_cls)
        return (architecture.encoder_layers - 1,) if by_keys else ()

    def reduce_flops(self, views: Any, left: Any, source: Source, architecture: Architecture) -> int:
        width = architecture.encoder_hidden if self.early(source, architecture) else architecture.hidden
        return sum(ops.merge_flops(tokens, width, self._removals(tokens)) for tokens in views)

    def _target(self, tokens: int) -> int:
        """How many of a view's tokens are left in the end: at least one of any."""
        exact = self.retention * tokens
        rounded = math.ceil(exact - 1e-9) if self.rounding == "up" else math.floor(exact + 1e-9)
        return max(rounded, min(tokens, 1))

    def _removals(self, tokens: int) -> list[int]:
        """How many of a view's tokens each round removes."""
        removals, target = [], self._target(tokens)
        while tokens > target:
            removals.append(min(tokens // 2, tokens - target))
            tokens -= removals[-1]
        return removals

    # --- pruning ------------------------------------------------------------------------------------------------

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        l1, l2 = self._window(layers)
        slope, kept = self.slope or 1 / (l2 - l1), {}
        for layer in range(l1, layers):
            rate = max(0.0, 1 - (layer - l1 + 1) * slope)
            acts_after = layer - 1 if self.prune_before else layer
            if 0 <= acts_after < layers - 1:
                kept[acts_after] = int(rate * entered)
            if rate == 0:
                break
        return kept

    def score(self, layer: DecoderLayer) -> Tensor:
        return layer.importance(self.temperature, self.iterations)

    def score_flops(self, tokens: int, architecture: Architecture) -> int:
        return ops.pagerank_flops(tokens, architecture.heads, architecture.head_dim, self.iterations)

    def _window(self, num_layers: int) -> tuple[int, int]:
        l1, l2 = WINDOWS.get(num_layers, (round(num_layers * 14 / 28), round(num_layers * 22 / 28)))
        first = l1 if self.l1 is None else self.l1
        last = max(l2, first + 1) if self.l2 is None else self.l2
        if first > num_layers or last <= first:
            raise UserError(f"AIM's pruning window l1={first}, l2={last} does not fit a model of {num_layers} layers.")
        return first, last
