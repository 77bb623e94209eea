"""Broken: counts on itself how often it chose, so that a second run reads other tokens."""

from __future__ import annotations

import torch

from tokenzoo import TokenReducer


class ReadsByState(TokenReducer):
    name = "reads_by_state"
    steps = 0

    def read(self, entered, layers):
        return {2: entered // 2}

    def pick_read(self, step, count):
        self.steps += 1
        return (torch.arange(count) + self.steps) % len(step.visual)
