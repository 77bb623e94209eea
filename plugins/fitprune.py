"""FitPrune: fit how many tokens each layer drops to the model's attention (arXiv 2409.10197, AAAI 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

import tokenzoo
from tokenzoo import ActsAfter, TokenReducer, UnreachableError, UserError
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer

#: The table where none is given, and the visual tokens that it is of: `calibrate` on embedded:llava, 40 % of the FLOPs left.
DELETE, TOKENS = (34, 24, 0, 17, 16, 1, 3, 1, 0, 0, 0, 0), 144
#: The bisection of alpha ends when its bracket is no wider.
BRACKET = 0.01


@dataclass
class FitPrune(TokenReducer):
    """After the attention of each layer, before its MLP, drop the `delete[layer]` visual tokens that get least attention.

    A token's worth is c · s: c what the text tokens behind the picture give it, s what the visual tokens give it, each
    the largest weight of any head, summed over those rows. Kept tokens keep order and positions. The layer's KV cache
    still holds what its attention saw.

    `delete` is a table with one entry a layer, for a picture of `tokens` visual tokens: make it for your model with
    'tokenzoo calibrate --method fitprune'. For another number of tokens, or of layers, it is stretched: as large a share is
    left at the same depth. None is the table of embedded:llava, which fits no other model in particular.
    """

    delete: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(min_length=1, description="Visual tokens dropped in each layer (null: the table of embedded:llava)."),
    ] = None
    tokens: Annotated[int, Field(ge=1, description="Visual tokens of the picture that the table is of.")] = TOKENS

    name: ClassVar[str] = "fitprune"
    text_aware: ClassVar[bool] = True
    acts_after: ClassVar[ActsAfter] = "attention"

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        shares = self.shares(layers)
        return {layer: round(after * entered) for layer, (before, after) in enumerate(pairwise(shares)) if after < before}

    def shares(self, layers: int) -> list[float]:
        """The share of the visual tokens left ahead of each of `layers` layers, and behind the last one."""
        table = self.delete or DELETE
        left = [max(0, self.tokens - gone) / self.tokens for gone in accumulate(table, initial=0)]
        found = []
        for layer in range(layers + 1):
            whole, part = divmod(layer * len(table), layers)
            following = left[min(whole + 1, len(table))]
            found.append(left[whole] + (following - left[whole]) * part / layers)
        return found

    def score(self, layer: DecoderLayer) -> Tensor:
        return _received(layer, layer.text_after) * _received(layer, layer.visual)

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """The table's shares to a power such that a layer sees `retention` of the tokens on average."""
        many = 10_000
        shares = [max(share, 0.5 / many) for share in self.shares(layers)]

        def mean(power: float) -> float:
            return sum(share**power for share in shares[:-1]) / layers

        full = sum(share == 1 for share in shares[:-1])
        if retention * layers < full:
            raise UnreachableError(
                f"'fitprune' sees all tokens in {full} of {layers} layers, so a mean of {retention:.4g} is out of reach."
            )
        low, high = 0.0, 64.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) > retention else (low, middle)
        left = [round(many * share**high) for share in shares]
        return self.replace(delete=tuple(before - after for before, after in pairwise(left)), tokens=many)

    def calibrate(
        self,
        model: Any,
        calls: Sequence[Mapping[str, Any]],
        budget: float | None = None,
        visual: Sequence[Any] | None = None,
    ) -> TokenReducer:
        """Fit the table to a model's own attention: `budget` (None: 0.4) is the share left of the FLOPs of its visual tokens.

        Of each call and layer those tokens go that lie in both sets: the tokens with the least attention from text, and those
        with the least from visual tokens, whose removal leaves 1 - alpha of what all of them get in the unpruned model. An
        entry is the mean over the samples, rounded down. alpha is bisected to the smallest that meets the budget; once it is
        met, later layers drop nothing.
        """
        share = 0.4 if budget is None else budget
        if not 0 < share < 1:
            raise UserError(f"FitPrune's budget is a share of the FLOPs between 0 and 1, not {budget}.")
        passes = _Passes(model, [dict(call) for call in calls], visual)
        low, high, best = 0.0, 1.0, None
        while high - low > BRACKET:
            alpha = (low + high) / 2
            table = passes.table(alpha, share)
            low, high, best = (low, alpha, table) if table is not None else (alpha, high, best)
        if best is None:
            raise UserError(f"No table leaves {share:.0%} of the FLOPs of the visual tokens. Give a larger --budget.")
        return self.replace(delete=tuple(best), tokens=passes.tokens)


def _received(layer: DecoderLayer, rows: Tensor) -> Tensor:
    """The attention that each visual token gets of these rows; of the last one where there are none."""
    return layer.strongest_attention(rows if len(rows) else "last")[layer.visual]


def _harmless(received: Tensor, reference: float, alpha: float) -> Tensor:
    """Which tokens are the longest run of those with the least attention whose removal leaves (1 - alpha) of `reference`."""
    ascending = received.sort(stable=True)
    left = received.sum() - ascending.values.cumsum(0)
    count = int((left >= (1 - alpha) * reference).sum())
    return torch.zeros_like(received, dtype=torch.bool).index_fill(0, ascending.indices[:count], True)


class _Passes:
    """Forward passes of the calibration. `reference[layer][sample]` are the sums of attention in the unpruned model."""

    def __init__(self, model: Any, calls: list[dict[str, Any]], visual: Sequence[Any] | None) -> None:
        self.model, self.calls, self.visual = model, calls, visual
        config = model.config.get_text_config()
        self.layers, self.hidden, self.inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        self.reference: list[list[tuple[float, float]]] = []
        seen, self.reference = self._run(None)
        self.entered = [before for before, _ in seen[0]]
        if not self.entered:
            raise UserError("The calls that FitPrune is calibrated on have no visual tokens.")
        self.tokens = round(sum(self.entered) / len(self.entered))

    def _run(self, alpha: float | None) -> tuple[list[list[tuple[int, int]]], list[list[tuple[float, float]]]]:
        """For each layer and sample, how many visual tokens its attention sees and how many it leaves, and what attention
        they get in all."""
        seen: list[list[tuple[int, int]]] = [[] for _ in range(self.layers)]
        sums: list[list[tuple[float, float]]] = [[] for _ in range(self.layers)]
        passes = self

        class Calibration(TokenReducer):
            name: ClassVar[str] = "fitprune"
            acts_after: ClassVar[ActsAfter] = "attention"

            def kept(self, entered: int, layers: int) -> dict[int, None]:
                return dict.fromkeys(range(layers))

            def pick(self, layer: DecoderLayer, count: int | None) -> Tensor:
                text = max(1, len(layer.text_after))
                cross, own = _received(layer, layer.text_after) / text, _received(layer, layer.visual) / len(layer.visual)
                stays = torch.ones_like(cross, dtype=torch.bool)
                if alpha is not None:
                    whole = passes.reference[layer.index][len(seen[layer.index])]
                    stays = ~(_harmless(cross, whole[0], alpha) & _harmless(own, whole[1], alpha))
                    stays[(cross * own).argmax()] = True  # a layer must not run out of tokens
                kept = stays.nonzero()[:, 0]
                seen[layer.index].append((len(stays), len(kept)))
                sums[layer.index].append((float(cross.sum()), float(own.sum())))
                return kept

        with torch.no_grad(), tokenzoo.apply(self.model, Calibration(), visual=self.visual):
            for call in self.calls:
                self.model(**call)
        return seen, sums

    def table(self, alpha: float, share: float) -> list[int] | None:
        """The table of one alpha; None where it leaves more than `share` of the FLOPs."""
        seen, _ = self._run(alpha)
        target = share * sum(map(self._whole, self.entered)) * self.layers
        spent, table = 0, [0] * self.layers
        for layer, counts in enumerate(seen):
            before, after = zip(*counts, strict=True)
            spent += sum(map(self._attention, before))
            later = (self.layers - 1 - layer) * sum(map(self._whole, before))
            if spent + sum(map(self._mlp, before)) + later <= target:
                return table
            spent += sum(map(self._mlp, after))
            table[layer] = (sum(before) - sum(after)) // len(counts)
        return None

    def _attention(self, tokens: int) -> int:
        """q, k, v and both products with the scores."""
        return 3 * tokens * self.hidden**2 + 2 * tokens**2 * self.hidden

    def _mlp(self, tokens: int) -> int:
        """The output projection and the MLP."""
        return tokens * self.hidden**2 + 3 * tokens * self.hidden * self.inner

    def _whole(self, tokens: int) -> int:
        return self._attention(tokens) + self._mlp(tokens)
