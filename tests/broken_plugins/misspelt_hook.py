"""Broken: `after_layers` is no hook; it would never be called."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class MisspeltHook(TokenReducer):
    name = "misspelt_hook"

    def after_layers(self, layer):
        return layer.visual[:0]
