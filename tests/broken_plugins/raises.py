"""Broken: raises while the model runs."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class Raises(TokenReducer):
    name = "raises"

    def pre_llm(self, tokens):
        return {}["no such key"]

    def schedule(self, workload):
        return [workload.visual_tokens] * workload.architecture.layers
