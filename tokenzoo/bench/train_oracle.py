"""Stage 1: the decoder learns to look answers up in oracle visual tokens, before any vision is trained.

An oracle token is the sum of a kind, a colour, a row and a column embedding. Trained from scratch on pictures, decoder and
encoder wait for each other and stall; with oracle tokens the decoder is done in minutes and then tells the encoder what to say.
"""

from __future__ import annotations

import torch
from torch import nn

from tokenzoo.bench.scenes import CELLS, COLORS, KINDS


class OracleTokens(nn.Module):
    """Embeddings of what a patch shows, shared by every stage: the encoder is trained to reproduce them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(len(KINDS) + 1, hidden)
        self.color = nn.Embedding(len(COLORS) + 1, hidden)
        self.row = nn.Embedding(CELLS, hidden)
        self.column = nn.Embedding(CELLS, hidden)
        for weight in self.parameters():
            nn.init.normal_(weight, 0, 0.06)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels [batch, 2, side, side] (kind, colour per patch) -> [batch, side * side, hidden]."""
        side = labels.shape[-1]
        cell = torch.arange(side) * CELLS // side
        tokens = self.kind(labels[:, 0]) + self.color(labels[:, 1])
        tokens = tokens + self.row(cell)[:, None] + self.column(cell)[None]
        return tokens.flatten(1, 2)


def per_cell(labels: torch.Tensor) -> torch.Tensor:
    """Labels of patches [batch, 2, 12, 12] as labels of cells [batch, 2, 3, 3]: the cheap first steps use nine tokens."""
    batch, two, side, _ = labels.shape
    return labels.reshape(batch, two, CELLS, side // CELLS, CELLS, side // CELLS).amax((3, 5))
