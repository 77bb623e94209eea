"""Broken: normalises the hidden states in place, so the model goes on with changed ones."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class MutatesInput(TokenReducer):
    name = "mutates_input"

    def kept(self, entered, layers):
        return {1: entered // 2}

    def pick(self, layer, count):
        states = layer.hidden_states
        states /= states.norm(dim=-1, keepdim=True)
        score = (states[layer.visual] @ states[-1]).abs()
        return score.topk(len(score) // 2).indices
