"""M-RoPE in vLLM: a kept token keeps its place in time and picture, and text goes on as behind the whole picture.

vLLM asks for a prompt's positions before a picture is encoded, when nobody knows yet which tokens will be left. Text can be
placed then; a picture's tokens come with places of their own, relative to the picture's first, as channels behind their
features (vLLM's interface `SupportsMultiModalPruning`), and are placed when the features are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

#: A place on one axis is written as this many channels of whole numbers below `BASE`, which every number format holds exactly.
DIGITS, BASE = 2, 256
CHANNELS = 3 * DIGITS


def with_places(features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Features [tokens, hidden] with their places [3, tokens] as channels behind them."""
    digits = [places // BASE**power % BASE for power in range(DIGITS)]
    return torch.cat([features, torch.cat(digits).T.to(features)], dim=1)


def split_places(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo `with_places`."""
    digits = features[:, -CHANNELS:].T.long().unflatten(0, (DIGITS, 3))
    powers = BASE ** torch.arange(DIGITS, device=features.device)
    return features[:, :-CHANNELS], (digits * powers[:, None, None]).sum(0)


def shortened(
    tokens: int, spans: Sequence[tuple[int, int, int]], whole: Callable[[int, list[int]], torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Positions [3, tokens] of a prompt in which pictures are shortened, and what a generated token's exceeds its index by.

    `spans`: (offset, tokens, unreduced tokens) of each picture, in order. `whole(length, offsets)` gives the positions [3,
    length] of the prompt with whole pictures. A picture's tokens all get its first one's position here.
    """
    index, offsets, added = [], [], 0
    end = 0
    for offset, left, full in spans:
        index.append(torch.arange(end, offset) + added)
        index.append(torch.full((left,), offset + added))
        offsets.append(offset + added)
        added += full - left
        end = offset + left
    index.append(torch.arange(end, tokens) + added)
    positions = whole(tokens + added, offsets)
    return positions[:, torch.cat(index)], int(positions.max()) + 1 - tokens


def placed(positions: torch.Tensor, visual: torch.Tensor, places: Sequence[torch.Tensor], computed: int) -> torch.Tensor:
    """`positions` [3, tokens] with the next visual tokens from column `computed` on at their places [3, tokens of a picture].

    `visual` [tokens]: which columns hold visual tokens. A picture's first place is behind the text ahead of it.
    """
    count = sum(part.shape[1] for part in places)
    if not count:
        return positions
    positions, columns = positions.clone(), visual.nonzero()[:, 0]
    columns = columns[columns >= computed][:count]
    text = torch.where(visual, -1, torch.arange(len(visual), device=visual.device)).cummax(0).values
    before = text[columns]
    first = torch.where(before < 0, 0, positions[:, before.clamp(min=0)].amax(0) + 1)
    positions[:, columns] = (first + torch.cat(list(places), dim=1).to(positions.device)).to(positions.dtype)
    return positions
