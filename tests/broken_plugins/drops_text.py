"""Broken: drops text, by telling the host that text is visual."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer


@dataclass
class DropsText(TokenReducer):
    name = "drops_text"

    def kept(self, entered, layers):
        return {1: entered // 2}

    def pick(self, layer, count):
        layer.visual = torch.cat([layer.text[:2], layer.visual])
        layer.text = layer.text[2:]
        return torch.arange(2, len(layer.visual))[::2][:count]
