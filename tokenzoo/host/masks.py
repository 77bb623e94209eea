"""Who sees whom among the rows that are left, in decoders with a mask and a rotary embedding per layer type.

Such a decoder (Gemma) is handed ready-made masks: causal ones, ones with a sliding window, both open inside an image. What
is left sees what it would see with the dropped rows merely masked: a row keeps its image block, and a window is measured
in position ids, as the rotary embedding is. It is measured in rows too, as the KV cache keeps them; that makes a difference
only where a method returned tokens in another order than that of their positions.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from tokenzoo.host.batch import Layout
from tokenzoo.host.family import FULL, Family, Module

#: The attention backends whose masks are plain tensors.
BACKENDS = ("sdpa", "eager")


class LayerTypes:
    """The layer types of one decoder; a decoder without any has one type, whose mask transformers builds."""

    def __init__(self, family: Family, decoder: Module) -> None:
        self.family, self.decoder = family, decoder

    @property
    def several(self) -> bool:
        return self.family.per_layer_type

    @cached_property
    def reported(self) -> int:
        """The layer whose length a KV cache gives as its own: the first that keeps keys."""
        projections = self.family.decoder_projections
        return next(index for index, layer in enumerate(self.decoder.layers) if projections(layer) is not None)

    def turn_alike(self, one: int, other: int) -> bool:
        """Whether two layers have the same rotary embedding."""
        return not self.several or self.of(one) == self.of(other)

    def of(self, index: int) -> str:
        return self.family.layer_type(self.decoder, index)

    def since(self, first: int) -> dict[str, int]:
        """The types of the layers from `first` on, each with the first layer of its type."""
        found: dict[str, int] = {}
        for index in range(first, len(self.decoder.layers)):
            found.setdefault(self.of(index), index)
        return found

    def window(self, layer_type: str) -> int | None:
        return self.decoder.config.sliding_window if layer_type == "sliding_attention" else None

    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor, layer_type: str) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [batch, length, head dim] at positions [batch, length]."""
        return self.family.rotary(self.decoder, hidden, positions, layer_type)

    def read(self, masks: dict[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Padding [batch, length] and blocks [batch, length] of the masks that a decoder is given; None where there are none.

        The last row sees all that is no padding, where nothing is too far back. Rows of one block share the last row that
        they see.
        """
        padding, blocks = masks[FULL], None
        if padding is not None and padding.ndim > 2:
            padding = _visible(padding)[:, -1]
        opened = [mask for layer_type, mask in masks.items() if self.family.opens_images(layer_type)]
        if opened and opened[0] is not None and opened[0].ndim > 2:
            visible = _visible(opened[0])
            blocks = torch.where(visible, torch.arange(visible.shape[-1], device=visible.device), -1).amax(-1)
        return padding, blocks

    def blocks(self, layer_type: str, blocks: Any) -> Any:
        """The image blocks where layers of this type open them."""
        return blocks if self.family.opens_images(layer_type) else None

    def prefill_masks(
        self, first: int, layout: Layout, positions: list[torch.Tensor], blocks: list[torch.Tensor] | None, hidden: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The masks of the layers from `first` on, of rows at `positions` in `blocks` (both per sample)."""
        places = torch.arange(layout.length, device=hidden.device)
        present = layout.mask(hidden.device)
        padded = layout.pad(positions)
        block = layout.pad(blocks) if blocks is not None else None
        return {
            layer_type: self.as_mask(
                seen(places, places, padded, self.window(layer_type), self.blocks(layer_type, block), present), hidden.dtype
            )
            for layer_type in self.since(first)
        }

    def step_mask(
        self, layer_type: str, cache: Any, index: int, positions: torch.Tensor, present: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """The mask of one generated token, which is the last of `positions` [batch, rows]; `present`: which are no padding.

        A layer with a window has only its last rows in the cache.
        """
        length, start = cache.get_mask_sizes(1, index)
        keys = torch.arange(start, start + length, device=hidden.device)
        query = torch.arange(positions.shape[1] - 1, positions.shape[1], device=hidden.device)
        return self.as_mask(seen(query, keys, positions, self.window(layer_type), None, present), hidden.dtype)

    def as_mask(self, visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The mask as the backend takes it, [batch, 1, queries, keys]."""
        if self.decoder.config._attn_implementation == "sdpa":
            return visible[:, None]
        hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def seen(
    queries: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    window: int | None,
    blocks: torch.Tensor | None,
    present: torch.Tensor | None,
) -> torch.Tensor:
    """Which `keys` each of the `queries` sees, both indices of rows: [..., queries, keys].

    `positions`, `blocks`, `present` [..., rows]: rows see those before them and those of their own block, no further back
    than `window` positions and rows, and no padding but themselves.
    """
    visible = keys <= queries[:, None]
    if blocks is not None:
        visible = visible | (blocks[..., queries, None] == blocks[..., None, keys])
    if window is not None:
        visible = visible & (queries[:, None] - keys < window)  # as the cache keeps them
        visible = visible & (positions[..., queries, None] - positions[..., None, keys] < window)
    if present is not None:
        visible = (visible & present[..., None, keys]) | (keys == queries[:, None])
    return visible


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """Who sees whom by a mask as a backend takes it: bool [batch, queries, keys]."""
    return mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
