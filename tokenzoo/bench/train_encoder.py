"""The vision side of training: what the encoder says of each patch, and what its CLS token says of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokenzoo.bench.scenes import CELLS, COLORS, FRAMES, KINDS, PATCH_SIZE, SIZE

MEAN = 0.5
STD = 0.5
SIDE = SIZE // PATCH_SIZE
BACKGROUND_WEIGHT = 0.1


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [batch, 96, 96, 3] -> normalised float [batch, 3, 96, 96], as the image processor does."""
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return ((values - MEAN) / STD).contiguous()


def encode(model: Any, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Patch features that the projector reads [batch, 144, hidden], and the last layer's CLS token if there is one."""
    outputs = model.model.vision_tower(values, output_hidden_states=True)
    features = outputs.hidden_states[model.config.vision_feature_layer]
    if model.config.vision_feature_select_strategy == "full":
        return features, None
    return features[:, 1:], outputs.pooler_output


class PatchHeads(nn.Module):
    """Linear probes used in training only: kind, colour, row and column of a patch; what is in the picture (CLS); and the
    frame of a visual token, read off an early decoder layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.kind = nn.Linear(hidden, len(KINDS) + 1)
        self.color = nn.Linear(hidden, len(COLORS) + 1)
        self.row = nn.Linear(hidden, CELLS)
        self.column = nn.Linear(hidden, CELLS)
        self.frame = nn.Linear(hidden, FRAMES)
        self.contents = nn.Linear(hidden, (len(KINDS) + 1) * (len(COLORS) + 1))

    def loss(self, features: torch.Tensor, summary: torch.Tensor | None, shown: torch.Tensor) -> tuple[torch.Tensor, float]:
        """shown [batch, 2, 12, 12] -> (loss, share of object patches with the right kind and colour)."""
        features = self.norm(features)
        kind, color = shown[:, 0].flatten(1), shown[:, 1].flatten(1)
        weight = torch.where(kind > 0, 1.0, BACKGROUND_WEIGHT)
        weight = weight / weight.sum()
        kind_logits, color_logits = self.kind(features), self.color(features)
        total = (F.cross_entropy(kind_logits.transpose(1, 2), kind, reduction="none") * weight).sum()
        total = total + (F.cross_entropy(color_logits.transpose(1, 2), color, reduction="none") * weight).sum()
        cell = torch.arange(SIDE) * CELLS // SIDE
        row = cell[:, None].expand(SIDE, SIDE).flatten().expand(len(features), -1)
        column = cell.repeat(SIDE).expand(len(features), -1)
        total = total + 0.3 * F.cross_entropy(self.row(features).transpose(1, 2), row)
        total = total + 0.3 * F.cross_entropy(self.column(features).transpose(1, 2), column)
        if summary is not None:
            pairs = torch.zeros(len(features), self.contents.out_features)
            pairs.scatter_(1, kind * (len(COLORS) + 1) + color, 1)
            total = total + 3 * F.binary_cross_entropy_with_logits(self.contents(summary), pairs)
        right = (kind_logits.argmax(-1) == kind) & (color_logits.argmax(-1) == color)
        return total, right[kind > 0].float().mean().item()


def alignment(projected: torch.Tensor, oracle: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """How far projected features [batch, 144, hidden] are from the oracle tokens, in units of the oracle's spread."""
    weight = torch.where(shown[:, 0].flatten(1) > 0, 1.0, BACKGROUND_WEIGHT)
    distance = (projected - oracle.detach()).square().mean(-1) / oracle.detach().var()
    return (distance * weight).sum() / weight.sum()
