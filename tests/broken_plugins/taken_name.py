"""Broken: the name belongs to a built-in method."""

from dataclasses import dataclass

from tokenzoo import TokenReducer


@dataclass
class TakenName(TokenReducer):
    name = "aim"

    def schedule(self, workload):
        return [workload.visual_tokens] * workload.architecture.layers
