"""Oracle tokens: what a visual token should say, as the sum of embeddings of what its patch shows.

Trained from scratch on pictures, decoder and encoder wait for each other and stall. With oracle tokens the decoder learns to
look answers up before any vision is trained, and then they tell the encoder what to say.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tokenzoo.bench.scenes import CELLS, COLORS, KINDS

SPREAD = 0.06


class OracleTokens(nn.Module):
    """Embeddings of kind, colour, row and column, and a direction along which time passes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(len(KINDS) + 1, hidden)
        self.color = nn.Embedding(len(COLORS) + 1, hidden)
        self.row = nn.Embedding(CELLS, hidden)
        self.column = nn.Embedding(CELLS, hidden)
        self.time = nn.Parameter(torch.empty(hidden))
        for weight in self.parameters():
            nn.init.normal_(weight, 0, SPREAD)

    def forward(self, shown: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """shown [batch, 5, side, side] (see `scenes.labels`), time [batch] in 0..1 -> [batch, side * side, hidden]."""
        parts = (self.kind, self.color, self.row, self.column)
        tokens = sum(part(shown[:, index]) for index, part in enumerate(parts))
        return tokens.flatten(1, 2) + (2 * time[:, None, None] - 1) * self.time

    @torch.no_grad()
    def fit(self, tokens: torch.Tensor, shown: torch.Tensor) -> float:
        """Take the embeddings that a trained model's visual tokens [batch, side * side, hidden] are nearest to sums of.

        Time keeps its direction, scaled to the tokens' spread. Returns the share of the tokens' variance that is explained.
        """
        parts = (self.kind, self.color, self.row, self.column)
        marks = [F.one_hot(shown[:, index].flatten(), part.num_embeddings) for index, part in enumerate(parts)]
        design, wanted = torch.cat(marks, 1).double(), tokens.flatten(0, 1).double()
        found = torch.linalg.lstsq(
            design.T @ design + 1e-3 * torch.eye(design.shape[1], dtype=torch.double), design.T @ wanted
        ).solution
        for part, weight in zip(parts, found.split([part.num_embeddings for part in parts]), strict=True):
            part.weight.copy_(weight)
        self.time.mul_(found.std() / SPREAD)
        return 1 - ((design @ found - wanted).var() / wanted.var()).item()


def per_cell(shown: torch.Tensor) -> torch.Tensor:
    """What patches show [batch, 5, 12, 12] as what cells show [batch, 5, 3, 3]: the cheap first steps use nine tokens."""
    cells = torch.zeros(len(shown), shown.shape[1], CELLS, CELLS, dtype=shown.dtype)
    for row in range(CELLS):
        for column in range(CELLS):
            mine = (shown[:, 2] == row) & (shown[:, 3] == column)
            cells[:, :2, row, column] = (shown[:, :2] * mine[:, None]).amax((2, 3))
            cells[:, 2, row, column], cells[:, 3, row, column] = row, column
    return cells
