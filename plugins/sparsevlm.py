"""SparseVLM: the question's words rate the visual tokens, in three stages (Zhang et al., ICML 2025, arXiv 2410.04417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tokenzoo import PositionPolicy, Reduction, TokenReducer, UnreachableError, UserError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

#: Layers of 32 that run before each stage.
STAGES = (3, 7, 16)


@dataclass
class SparseVLM(TokenReducer):
    """After the first `layer_list[s]` layers, keep the k_s = round(ratios[s] · V) visual tokens rated highest, of V that entered.

    **Raters**: with the embeddings v_i of the visual tokens and q_j of the text behind them, w_j = mean_i softmax_j(v_i ·
    q_j); raters are the text tokens with w_j above the mean. **Rating** r_i: the layer's attention on token i, mean over
    heads and raters. Version 1 (v1.5, the ICML text) merges part of the D dropped tokens: of the int(0.3 D) + 1 rated
    highest it makes C = int(that / 10) + 1 clusters (DPC-kNN on their states, C neighbours), whose means follow the kept
    tokens; positions are renumbered. Version 2 (SparseVLM+) merges none and keeps positions; it first divides the
    attention by its decay with distance, G(δ) = 2/√d Σ_i cos(δ θ_i) for the d/2 rotary frequencies θ, and averages
    only the `heads` with the most attention from raters to visual tokens (14 of 32).

    `layer_list` None: after 3, 7 and 16 of 32 layers, or those shares of another depth. The default ratios are the
    published 192 tokens of 576. Papers count a stage's tokens in the layer before it as well, so 192 are 206 on average.

    Ours on purpose: clusters without random noise, of equal densities the higher rated token is the denser; a stage that
    would keep everything does nothing (released: one token goes to the end, or is lost); no rater, as with one text
    token, makes all raters; G is at least `gravity_floor` · √d (it turns negative from distance 1707 on for d = 128),
    and with M-RoPE the mean over the axes.
    """

    version: Annotated[Literal[1, 2], Field(description="1: v1.5 with merging; 2: SparseVLM+ without.")] = 1
    ratios: Annotated[tuple[Share, ...], Field(description="Share of V kept in each stage, merged ones not counted.")] = (
        0.5208,
        0.3472,
        0.191,
    )
    layer_list: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None, Field(description="Full layers before each stage (null: by depth).")
    ] = None
    heads: Annotated[float, Field(gt=0, le=1, description="Share of heads that rate in version 2.")] = 14 / 32
    gravity_floor: Annotated[
        float | None, Field(gt=0, le=1, description="Least attention decay in version 2 (null: none, as released).")
    ] = 0.1
    position: Annotated[
        PositionPolicy | None, Field(description="Position ids after each stage (null: renumber in version 1, keep in 2).")
    ] = None

    name: ClassVar[str] = "sparsevlm"
    text_aware: ClassVar[bool] = True

    def check(self) -> None:
        stages = len(STAGES) if self.layer_list is None else len(self.layer_list)
        if stages != len(self.ratios):
            raise UserError(f"SparseVLM needs one ratio for each stage: {stages} stages, {len(self.ratios)} ratios.")
        if self.layer_list is not None and list(self.layer_list) != sorted(set(self.layer_list)):
            raise UserError(f"SparseVLM's layer_list must ascend, not {self.layer_list}.")

    @property
    def layer_positions(self) -> PositionPolicy:
        return self.position or ("renumber" if self.version == 1 else "keep")

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        left, now = {}, entered
        for layer, ratio in self.stages(layers).items():
            keep = round(ratio * entered)
            left[layer] = now = now if keep >= now else keep + self.clusters(now - keep)
        return left

    def stages(self, layers: int) -> dict[int, float]:
        """After which layer which share is kept; a model too shallow for all stages has the last ones."""
        starts = self.layer_list or sorted({max(1, round(layers * start / 32)) for start in STAGES})
        return {start - 1: ratio for start, ratio in zip(starts, self.ratios[-len(starts) :], strict=True)}

    def clusters(self, dropped: int) -> int:
        """How many tokens are made of those dropped."""
        return int((int(0.3 * dropped) + 1) / 10) + 1 if self.version == 1 else 0

    def pick(self, layer: DecoderLayer, count: int | None) -> Tensor | Reduction:
        assert count is not None
        if self.version == 2:
            return super().pick(layer, count)
        order = self.score(layer).argsort(descending=True, stable=True)
        keep = min(count, round(self.stages(layer.num_layers)[layer.index] * layer.entered))
        clusters = count - keep
        some = order[: keep + max(int(0.3 * (len(order) - keep)) + 1, clusters)]
        states = layer.hidden_states[layer.visual[some]]
        merged, centres = self.merge(states[keep:], clusters)
        anchors = torch.cat([some[:keep], some[keep:][centres]])
        return Reduction(torch.cat([states[:keep], merged]), anchors, appended=clusters)

    def merge(self, states: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The means of `count` clusters of states [n, hidden], and the index of each cluster's centre."""
        found = ops.dpc_knn(states, count, count)
        return ops.mean_by_assignment(states[None], found.assignment[None], count)[0], found.centres

    def score(self, layer: DecoderLayer) -> Tensor:
        rows = layer.text_after if len(layer.text_after) else layer.rows("last")
        weights, shares = layer.attention(rows), self.shares(layer, rows)[:, None]
        if self.version == 1:
            return (weights.mean(0)[:, layer.visual] * shares).sum(0)
        weights = weights[:, :, layer.visual] / self.gravity(layer, rows)
        strongest = ops.top_indices((weights * shares).sum((1, 2)), max(1, round(self.heads * len(weights))))
        return (weights[strongest].mean(0) * shares).sum(0)

    def shares(self, layer: DecoderLayer, rows: Tensor) -> Tensor:
        """The share of each of the text tokens `rows` in a rating, [rows]: 1 / raters, or 0; chosen once, when all visual
        tokens are there."""
        if "sparsevlm" not in layer.memory:
            embeddings = layer.embeddings().float()
            weight = (embeddings[layer.visual] @ embeddings[rows].T).softmax(-1).mean(0)
            # equal shares of the raters, and of all where there is none: others are e⁻⁹⁹⁹ = 0 beside a rater
            layer.memory["sparsevlm"] = ((weight > weight.mean()) * 999.0).softmax(0)
        return layer.memory["sparsevlm"]

    def gravity(self, layer: DecoderLayer, rows: Tensor) -> Tensor:
        """G of the distances between text tokens and visual tokens, [rows, visual]."""
        positions, frequencies = layer.positions().float(), layer.frequencies().float()
        positions = positions if positions.ndim == 2 else positions[None]
        angles = (positions[..., None] * frequencies).transpose(0, 1).flatten(1)
        turned = torch.cat([angles.cos(), angles.sin()], dim=1)  # so that products are sums of cos(δ θ)
        decay = turned[rows] @ turned[layer.visual].T / angles.shape[1]
        decay = decay if self.gravity_floor is None else decay.clamp(min=self.gravity_floor)
        return decay * (2 * len(frequencies)) ** 0.5

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """Ratios x, x², x³ such that a layer sees `retention` of the tokens on average, merged ones included."""
        first, many, low, high = min(self.stages(layers)) + 1, 10_000, 0.0, 1.0

        def setting(x: float) -> TokenReducer:
            return self.replace(ratios=tuple(x**stage for stage in range(1, len(self.ratios) + 1)))

        def mean(x: float) -> float:
            kept, now, total = setting(x).kept(many, layers), many, 0
            for layer in range(layers):
                total, now = total + now, kept.get(layer, now) or 0
            return total / (many * layers)

        if retention < mean(0):
            raise UnreachableError(
                f"'sparsevlm' sees all tokens in {first} of {layers} layers, so a mean of {retention:.4g} is out of reach."
            )
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) < retention else (low, middle)
        return self.replace(ratios=tuple(round(high**stage, 4) for stage in range(1, len(self.ratios) + 1)))
