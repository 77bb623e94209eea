"""Broken: reads the batch as one sample: the first sample's choice is used for all."""

from dataclasses import dataclass

from tokenzoo import TokenReducer

_choice = {}


@dataclass
class BatchAsOne(TokenReducer):
    name = "batch_as_one"

    def layers(self, num_layers):
        return (0, 1)

    def after_layer(self, layer):
        if layer.index == 0:
            _choice.clear()
            return None
        if not _choice:
            score = layer.attention().mean(0)[0][layer.visual]
            _choice["kept"] = score.topk(len(score) // 2).indices
        return _choice["kept"][: len(layer.visual) // 2]

    def schedule(self, workload):
        layers = workload.architecture.layers
        tokens = workload.visual_tokens
        return [tokens] * 2 + [tokens // 2] * (layers - 2)
