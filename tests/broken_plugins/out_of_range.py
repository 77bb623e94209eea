"""Broken: indices count from the start of the prompt instead of the first visual token."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class OutOfRange(TokenReducer):
    name = "out_of_range"

    def kept(self, entered, layers):
        return {1: entered - entered // 2}

    def pick(self, layer, count):
        return layer.visual[len(layer.visual) // 2 :]
