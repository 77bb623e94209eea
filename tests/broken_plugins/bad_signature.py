"""Broken: the hook takes an argument the host does not give."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class BadSignature(TokenReducer):
    name = "bad_signature"

    def pre_llm(self, tokens, attention):
        return None
