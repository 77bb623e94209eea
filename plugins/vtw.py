"""VTW: visual tokens withdrawal (Lin et al., AAAI 2025, arXiv 2405.05803)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

import tokenzoo
from tokenzoo import PositionPolicy, TokenReducer, UnreachableError, UserError
from tokenzoo.lazy import torch


@dataclass
class VisualTokensWithdrawal(TokenReducer):
    """Before layer K, drop all visual tokens.

    Layers before K see, and cache, everything; the rest see text alone. K=None, the default, is 15 of 32 layers
    (LLaVA-1.5-7B) or that share of another depth; `find_k` searches it as the paper does. Positions are kept
    (`position="renumber"` is the other reading of the paper).
    """

    K: Annotated[int | None, Field(ge=1, description="Layers that see the visual tokens (null: by depth).")] = None
    position: Annotated[PositionPolicy, Field(description="Position ids of the text from layer K on.")] = "keep"

    name: ClassVar[str] = "vtw"

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        full = max(1, layers * 15 // 32) if self.K is None else self.K
        return {} if full == layers else {full - 1: 0}

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """The most full layers that are no larger a share of the depth."""
        full = int(retention * layers + 1e-9)
        if full < 1:
            raise UnreachableError(f"'vtw' sees all tokens in one layer of {layers} or more, so {retention:.4g} is out of reach.")
        return self.replace(K=full)

    def calibrate(
        self,
        model: Any,
        calls: Sequence[Mapping[str, Any]],
        budget: float | None = None,
        visual: Sequence[Any] | None = None,
    ) -> TokenReducer:
        """The K of `find_k`, whatever the budget: the paper's search has none."""
        return self.replace(K=find_k(model, calls, visual=visual))


def find_k(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    eta: float = 0.003,
    first: int = 5,
    visual: Sequence[Any] | None = None,
) -> int:
    """Return the first K whose withdrawal hardly changes the next token.

    `batches`: the keyword arguments of calls of `model` (about 20 prompts in all, one by one or padded on the left).
    For K = first, first + 1, ...: KL(P_withdrawn || P_full) of the last token's next-token distribution, averaged
    over all prompts; the first K with mean <= eta. `visual`: for a bare decoder, each prompt's spans as in
    `tokenzoo.apply`. Raises UserError, with the smallest mean found, where there is none.
    """
    calls = [dict(batch) for batch in batches]
    layers = model.config.get_text_config().num_hidden_layers
    full = [_last_log_probabilities(model, call) for call in calls]
    smallest, best = float("inf"), first
    for layer in range(first, layers):
        with tokenzoo.apply(model, VisualTokensWithdrawal(K=layer), visual=visual):
            withdrawn = [_last_log_probabilities(model, call) for call in calls]
        divergence = torch.cat([(w.exp() * (w - f)).sum(-1) for w, f in zip(withdrawn, full, strict=True)])
        mean = divergence.mean().item()
        if mean <= eta:
            return layer
        if mean < smallest:
            smallest, best = mean, layer
    raise UserError(
        f"No K from {first} to {layers - 1} keeps the mean KL divergence within eta={eta:g}; the smallest is "
        f"{smallest:.4g} at K={best}. Raise eta."
    )


def _last_log_probabilities(model: Any, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**call).logits[:, -1].float().log_softmax(-1)
