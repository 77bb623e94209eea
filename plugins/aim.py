"""AIM: merge similar visual tokens before the LLM, prune them inside it (Zhong et al., ICCV 2025, arXiv 2412.03248)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenzoo import Reduction, Source, TokenReducer, UnsupportedError, UserError, Workload, ops
from tokenzoo.method.reducer import PositionPolicy

if TYPE_CHECKING:
    import torch

    from tokenzoo.method.events import DecoderLayer, VisualTokens

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

    @property
    def entry_positions(self) -> PositionPolicy:  # type: ignore[override]
        return self.position

    def check(self) -> None:
        if self.l1 is not None and self.l2 is not None and self.l2 <= self.l1:
            raise UserError(f"AIM prunes from layer l1 to l2, so l2={self.l2} must be greater than l1={self.l1}.")
        if self.prune_before and self.l1 == 0:
            raise UserError("AIM with prune_before=True needs l1 >= 1: there is no layer before layer 0.")

    def check_model(self, family: Any, architecture: Any) -> None:
        self._window(architecture.layers)
        if self.merge_at == "before_projector" and not architecture.encoder_layers:
            raise UnsupportedError("A bare decoder has no projector to merge before. Set merge_at=pre_llm, or auto.")

    # --- merging ------------------------------------------------------------------------------------------------

    def _merges_early(self, has_cls: bool, views: int) -> bool:
        return self.merge_at == "before_projector" or (self.merge_at == "auto" and has_cls and views == 1)

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

    def _merge(self, tokens: VisualTokens, metric: torch.Tensor | None) -> Reduction | None:
        views = tokens.views()
        if not any(self._removals(len(view)) for view in views):
            return None
        return ops.merge_views(tokens.features, metric, views, self._removals)

    def before_projector(self, tokens: VisualTokens) -> Reduction | None:
        if not self._merges_early(tokens.has_cls, len(tokens.grids)):
            return None
        keys = tokens.encoder_query_key(max(tokens.recorded_layers))[1]
        metric = keys[:, int(tokens.has_cls) :].flatten(0, 1)
        return self._merge(tokens, metric if tokens.anchors is None else metric[tokens.anchors])

    def pre_llm(self, tokens: VisualTokens) -> Reduction | None:
        if self._merges_early(tokens.has_cls, len(tokens.grids)):
            return None
        return self._merge(tokens, None)

    def encoder_layers(self, num_layers: int) -> Sequence[int]:
        return (num_layers - 1,) if num_layers and self.merge_at != "pre_llm" else ()

    # --- pruning ------------------------------------------------------------------------------------------------

    def _window(self, num_layers: int) -> tuple[int, int]:
        l1, l2 = WINDOWS.get(num_layers, (round(num_layers * 14 / 28), round(num_layers * 22 / 28)))
        first = l1 if self.l1 is None else self.l1
        last = max(l2, first + 1) if self.l2 is None else self.l2
        if first > num_layers or last <= first:
            raise UserError(f"AIM's pruning window l1={first}, l2={last} does not fit a model of {num_layers} layers.")
        return first, last

    def _kept(self, entered: int, num_layers: int) -> dict[int, int]:
        """For each layer after which tokens are pruned, how many stay."""
        l1, l2 = self._window(num_layers)
        slope, kept = self.slope or 1 / (l2 - l1), {}
        for layer in range(l1, num_layers):
            rate = max(0.0, 1 - (layer - l1 + 1) * slope)
            acts_after = layer - 1 if self.prune_before else layer
            if 0 <= acts_after < num_layers - 1:
                kept[acts_after] = int(rate * entered)
            if rate == 0:
                break
        return kept

    def layers(self, num_layers: int) -> Sequence[int]:
        return tuple(self._kept(0, num_layers))

    def after_layer(self, layer: DecoderLayer) -> torch.Tensor | None:
        count = self._kept(layer.entered, layer.num_layers)[layer.index]
        return layer.keep_best(count, lambda: layer.importance(self.temperature, self.iterations))

    # --- numbers ------------------------------------------------------------------------------------------------

    def _merged_views(self, source: Source, workload: Workload) -> tuple[tuple[int, ...], bool]:
        """The view sizes that merging starts from, and whether it happens before the projector."""
        early = self._merges_early(workload.architecture.has_cls, len(source.before_projector))
        return (source.before_projector if early else source.view_tokens), early

    def _entry(self, workload: Workload) -> int:
        entry = 0
        for source in workload.sources:
            views, early = self._merged_views(source, workload)
            if early and any(map(self._removals, views)):
                entry += sum(map(self._target, views)) + ops.structural_left(source)
            else:
                entry += sum(map(self._target, source.view_tokens)) + source.structural
        return entry

    def projector_tokens(self, workload: Workload) -> int:
        total = 0
        for source in workload.sources:
            early = self._merged_views(source, workload)[1]
            total += sum(map(self._target, source.before_projector) if early else source.before_projector)
        return total

    def schedule(self, workload: Workload) -> list[int]:
        entered, layers = self._entry(workload), workload.architecture.layers
        return ops.token_schedule(entered, self._kept(entered, layers), layers)

    def overhead(self, workload: Workload) -> int:
        """The similarities of each merging round, and PageRank at each layer that prunes."""
        architecture, schedule, flops = workload.architecture, self.schedule(workload), 0
        for source in workload.sources:
            views, early = self._merged_views(source, workload)
            width = architecture.encoder_hidden if early else architecture.hidden
            flops += sum(ops.merge_flops(view, width, self._removals(view)) for view in views)
        pruning = self._kept(schedule[0], architecture.layers)
        for i in ops.acting_layers(schedule, pruning):
            tokens = workload.text_tokens + schedule[i]
            flops += ops.pagerank_flops(tokens, architecture.heads, architecture.head_dim, self.iterations)
        return flops

    def at_retention(self, retention: float) -> AIM:
        """Merge down to `retention`; pruning goes on below it."""
        return self.replace(retention=retention)  # type: ignore[return-value]
