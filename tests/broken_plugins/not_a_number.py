"""Broken: merged features hold NaN (a mean over no token)."""

from dataclasses import dataclass

import torch

from tokenzoo import Reduction, TokenReducer


@dataclass
class NotANumber(TokenReducer):
    name = "not_a_number"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        half = len(tokens.features) // 2
        features = tokens.features[:half].clone()
        features[0] = tokens.features[:0].mean(0)
        return Reduction(features, torch.arange(half))
