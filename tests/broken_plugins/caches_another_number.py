"""Broken: declares a half of the tokens for a layer's cache and returns one more."""

from __future__ import annotations

import torch

from tokenzoo import TokenReducer


class CachesAnotherNumber(TokenReducer):
    name = "caches_another_number"

    def cached(self, entered, layers):
        return {1: entered // 2}

    def pick_cached(self, layer, count):
        return torch.arange(count + 1)
