"""Broken: indices count from the start of the prompt instead of the first visual token."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class OutOfRange(TokenReducer):
    name = "out_of_range"

    def layers(self, num_layers):
        return (1,)

    def after_layer(self, layer):
        return layer.visual[len(layer.visual) // 2 :]

    def schedule(self, workload):
        tokens, layers = workload.visual_tokens, workload.architecture.layers
        return [tokens] * 2 + [tokens - tokens // 2] * (layers - 2)
