"""Broken: keeps one token more than its schedule promises."""

from dataclasses import dataclass

import torch

from tokenzoo import TokenReducer


@dataclass
class BreaksPromise(TokenReducer):
    name = "breaks_promise"

    def pre_llm(self, tokens):
        return torch.arange(len(tokens.features) // 2 + 1)

    def schedule(self, workload):
        return [sum(sum(s.view_tokens) // 2 + s.structural for s in workload.sources)] * workload.architecture.layers
