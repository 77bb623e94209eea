"""Broken: merged features have the wrong width."""

from dataclasses import dataclass

import torch

from tokenzoo import Reduction, TokenReducer


@dataclass
class WrongShape(TokenReducer):
    name = "wrong_shape"

    def pre_llm(self, tokens):
        half = len(tokens.features) // 2
        return Reduction(tokens.features[:half, :-1], torch.arange(half))

    def schedule(self, workload):
        return [workload.visual_tokens // 2] * workload.architecture.layers
