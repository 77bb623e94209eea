"""Broken: raises while the model runs."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class Raises(TokenReducer):
    name = "raises"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        return {}["no such key"]
