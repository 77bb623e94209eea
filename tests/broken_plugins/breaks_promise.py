"""Broken: keeps one token more than it declares."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer


@dataclass
class BreaksPromise(TokenReducer):
    name = "breaks_promise"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        return torch.arange(len(tokens.features) // 2 + 1)
