"""Broken: the hook takes an argument the host does not give."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class BadSignature(TokenReducer):
    name = "bad_signature"

    def reduce(self, tokens, attention):
        return attention
