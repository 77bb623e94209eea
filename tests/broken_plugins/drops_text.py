"""Broken: drops text, by telling the host that text is visual."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer


@dataclass
class DropsText(TokenReducer):
    name = "drops_text"

    def layers(self, num_layers):
        return (1,)

    def after_layer(self, layer):
        layer.visual = torch.cat([layer.text[:2], layer.visual])
        layer.text = layer.text[2:]
        return torch.arange(2, len(layer.visual), 2)

    def schedule(self, workload):
        tokens, layers = workload.visual_tokens, workload.architecture.layers
        return [tokens] * 2 + [tokens // 2] * (layers - 2)
