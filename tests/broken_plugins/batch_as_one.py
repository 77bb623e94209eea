"""Broken: reads the batch as one sample: the first sample's choice is used for all."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer

_choice = {}


@dataclass
class BatchAsOne(TokenReducer):
    name = "batch_as_one"

    def kept(self, entered, layers):
        return {0: None, 1: entered // 2}

    def pick(self, layer, count):
        if layer.index == 0:
            _choice.clear()
            return torch.arange(len(layer.visual))
        if not _choice:
            score = layer.attention().mean(0)[0][layer.visual]
            _choice["kept"] = score.topk(count).indices
        return _choice["kept"][:count]
