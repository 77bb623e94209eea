"""Broken: normalises the hidden states in place, so the model goes on with changed ones."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class MutatesInput(TokenReducer):
    name = "mutates_input"

    def layers(self, num_layers):
        return (1,)

    def after_layer(self, layer):
        states = layer.hidden_states
        states /= states.norm(dim=-1, keepdim=True)
        score = (states[layer.visual] @ states[-1]).abs()
        return score.topk(len(score) // 2).indices

    def schedule(self, workload):
        layers = workload.architecture.layers
        tokens = workload.visual_tokens
        return [tokens] * 2 + [tokens // 2] * (layers - 2)
