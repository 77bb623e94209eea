"""Broken: the name belongs to a built-in method."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class TakenName(TokenReducer):
    name = "aim"

    def left(self, views, source, architecture):
        return sum(views)
