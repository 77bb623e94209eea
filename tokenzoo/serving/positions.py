"""M-RoPE in vLLM: a kept token keeps its place in time and picture, and text goes on as behind the whole picture.

vLLM asks for a prompt's positions before a picture is encoded, when nobody knows yet which tokens will be left. Text can be
placed then. A picture's tokens come with places of their own, relative to the picture's first, as channels behind their
features, and are placed in the step of the engine that reads them.
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


def arranged(visual: torch.Tensor, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of a picture that was written as the columns `visual` [whole] tells apart: its text, and tokens `anchors`.

    Returns the order of the rows (all text rows, then all that are left of the tokens) and the whole column of each. As in the
    host, the tokens of an unbroken run stay in the order in which the method left them.
    """
    text, columns = (~visual).nonzero()[:, 0], visual.nonzero()[:, 0]
    begins = visual & ~visual.roll(1)
    begins[:1] = visual[:1]
    runs = torch.where(begins, torch.arange(len(visual)), 0).cummax(0).values
    rows = torch.cat([text, columns[anchors]])
    order = torch.cat([text, runs[columns[anchors]]]).argsort(stable=True)
    return order, rows[order]


class StepPlaces:
    """The places of the visual tokens that one step of the engine reads: noted with their features, added to its positions.

    Both are memory of a fixed address, which is what a CUDA graph of the step reads.
    """

    def __init__(self, tokens: int) -> None:
        self.ahead = torch.zeros(3, tokens, dtype=torch.long)
        # one more than a step has: a compiled decoder must not take a full step's stride for its length
        self.positions = torch.zeros(3, tokens + 1, dtype=torch.long)

    def note(self, visual: torch.Tensor, places: Sequence[torch.Tensor]) -> None:
        """`visual` [tokens]: which tokens of the step are visual; `places` [3, tokens] of each picture's."""
        self.ahead[:, : len(visual)][:, visual] = torch.cat(list(places), dim=1)

    def added(self, positions: torch.Tensor) -> torch.Tensor:
        """The step's positions [3, tokens], its visual tokens at their places. They are forgotten then."""
        count = positions.shape[1]
        moved = self.positions[:, :count].copy_(positions).add_(self.ahead[:, :count])
        self.ahead.zero_()
        return moved
