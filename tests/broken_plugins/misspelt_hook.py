"""Broken: `scores` is nothing the host knows; it would never be called."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class MisspeltHook(TokenReducer):
    name = "misspelt_hook"

    def scores(self, layer):
        return layer.visual[:0]
