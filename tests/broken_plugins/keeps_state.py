"""Broken: keeps state between calls: each prefill keeps fewer tokens than the one before."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer

_calls = []


@dataclass
class KeepsState(TokenReducer):
    name = "keeps_state"

    def left(self, views, source, architecture):
        return None

    def reduce(self, tokens):
        _calls.append(1)
        return torch.arange(max(1, len(tokens.features) - len(_calls)))
