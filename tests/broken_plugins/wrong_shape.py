"""Broken: merged features have the wrong width."""

from dataclasses import dataclass

import torch

from tokenzoo import Reduction, TokenReducer


@dataclass
class WrongShape(TokenReducer):
    name = "wrong_shape"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        half = len(tokens.features) // 2
        return Reduction(tokens.features[:half, :-1], torch.arange(half))
