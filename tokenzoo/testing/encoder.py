"""The encoder's mask oracle: what leaves an encoder in which patches were dropped or merged, computed without dropping any.

Every patch stays in every layer; those that a method dropped or merged away are hidden from the others by a mask, and what it
merged stands in its anchor's row. Sizes are counted again from what the method returned. Each source runs alone, so nothing
here is shared with the host but the method's calls, which are checked against the rows that the oracle has there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenzoo.host.family import Family, image_argument
from tokenzoo.method.reduction import Reduction
from tokenzoo.testing.recorder import Call


@dataclass
class MaskedEncoder:
    """One source's views through the encoder: `features` [views, (1 +) tokens, width] of the layer that goes to the projector;
    `anchors` [views, tokens], the patch that each token stands for; `difference`, the largest one between what the methods were
    given and what the oracle has there."""

    features: torch.Tensor
    anchors: torch.Tensor
    difference: float = 0.0


@torch.no_grad()
def entering_views(model: Any, family: Family, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The rows [views, rows, width] of all images ("image") and videos ("video") that enter the plain encoder's first layer."""
    found: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    handles = [layers[0].register_forward_pre_hook(note, with_kwargs=True) for layers in family.encoder_stacks(model)]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    given = {"image": image_argument(model), "video": "pixel_values_videos"}  # the models encode images first
    return dict(zip([kind for kind, name in given.items() if name in inputs], found, strict=True))


@torch.no_grad()
def masked_encoder(
    model: Any, family: Family, stack: Sequence[Any], entering: torch.Tensor, calls: Sequence[Call], proportional: bool
) -> MaskedEncoder:
    """Run the views of one source [views, rows, width] through the encoder layers `stack`, with the methods' `calls` in it."""
    cls, views = int(family.has_cls(model)), len(entering)
    numbers = torch.arange(views)[:, None]
    patches = entering.shape[1] - cls
    made = MaskedEncoder(entering, torch.arange(patches).expand(views, -1))
    sizes, hidden, begun = torch.ones(views, patches), entering, False
    for index in range(family.feature_layer(model) + 1):
        norm, mlp = family.encoder_mlp(stack[index])  # type: ignore[misc]
        attended: list[torch.Tensor] = []
        handle = norm.register_forward_pre_hook(lambda module, args, seen=attended: seen.append(args[0]))
        try:
            stack[index](hidden, _mask(made.anchors, sizes if proportional else None, hidden, cls) if begun else None)
        finally:
            handle.remove()
        hidden = attended[0]
        for half in ("attention", "layer"):
            if half == "layer":
                hidden = hidden + mlp(norm(hidden))
            for call in (call for call in calls if (call.layer, call.after) == (index, half)):
                rows = cls + made.anchors
                made.difference = max(made.difference, (call.features - hidden[numbers, rows]).abs().max().item())
                hidden, sizes = _reduced(call, hidden, sizes, rows)
                made.anchors, begun = made.anchors.gather(1, _index(call)), True
    made.features = torch.cat([hidden[:, :cls], hidden[numbers, cls + made.anchors]], dim=1)
    return made


def _index(call: Call) -> torch.Tensor:
    return call.result.anchors if isinstance(call.result, Reduction) else call.result


def _reduced(call: Call, hidden: torch.Tensor, sizes: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with what was merged in the anchors' places, and the sizes of the tokens that are left."""
    result, numbers = call.result, torch.arange(len(hidden))[:, None]
    if not isinstance(result, Reduction):
        return hidden, sizes.gather(1, result)
    hidden = hidden.clone()
    hidden[numbers, rows.gather(1, result.anchors)] = result.features
    if result.assignment is None:
        return hidden, sizes.gather(1, result.anchors)
    together = torch.zeros(result.anchors.shape)
    for view, (goes, size) in enumerate(zip(result.assignment.tolist(), sizes.tolist(), strict=True)):
        for output, own in zip(goes, size, strict=True):
            if output >= 0:
                together[view, output] += own
    return hidden, together


def _mask(anchors: torch.Tensor, sizes: torch.Tensor | None, hidden: torch.Tensor, cls: int) -> torch.Tensor:
    """[views, 1, 1, rows]: log size of the tokens that are there, 0 of CLS, the smallest number of all others."""
    bias = torch.full(hidden.shape[:2], torch.finfo(hidden.dtype).min)
    bias[:, :cls] = 0.0
    there = torch.zeros(anchors.shape) if sizes is None else sizes.log()
    return bias.scatter(1, cls + anchors, there)[:, None, None]
