"""VTW: visual tokens withdrawal (Lin et al., AAAI 2025, arXiv 2405.05803)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

import tokenzoo
from tokenzoo import TokenReducer, UnreachableError, UserError, Workload, ops
from tokenzoo.lazy import torch
from tokenzoo.method.reducer import PositionPolicy

if TYPE_CHECKING:
    from tokenzoo.method.events import DecoderLayer


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

    @property
    def layer_positions(self) -> PositionPolicy:  # type: ignore[override]
        return self.position

    def _first_without(self, num_layers: int) -> int:
        return max(1, num_layers * 15 // 32) if self.K is None else self.K

    def after_layer(self, layer: DecoderLayer) -> torch.Tensor | None:
        return layer.visual[:0]

    def layers(self, num_layers: int) -> Sequence[int]:
        first = self._first_without(num_layers)
        return (first - 1,) if first < num_layers else ()

    def check_model(self, family: Any, architecture: Any) -> None:
        if self.K is not None and architecture.layers < self.K:
            raise UserError(f"VTW's K={self.K} exceeds the {architecture.layers} layers of {architecture.name}.")

    def at_retention(self, retention: float) -> TokenReducer:
        raise UnreachableError("'vtw' has no retention knob but the integer K. Set it yourself, as in vtw:K=8.")

    def schedule(self, workload: Workload) -> list[int]:
        self.check_model(None, workload.architecture)
        layers = workload.architecture.layers
        return ops.token_schedule(workload.visual_tokens, dict.fromkeys(self.layers(layers), 0), layers)


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
