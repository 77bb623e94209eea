"""One prefill: the prompt, what entered the LLM, the stages since. It is tied to the KV cache that it filled."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tokenzoo.host.entry import Entry
from tokenzoo.host.prompt import Prompt
from tokenzoo.host.stages import Stage
from tokenzoo.method.validation import Checks


@dataclass
class Prefill:
    """What decoding steps, and the trace, need of a prefill.

    `additions` [batch, prompt length, hidden]: what the host adds to the rows after each of the first layers (DeepStack).
    """

    prompt: Prompt
    entry: Entry
    stages: list[Stage]
    checks: Checks
    #: What enters layer 0, [batch, length, hidden], where methods act inside the LLM.
    embeddings: torch.Tensor | None = None
    additions: list[torch.Tensor] = field(default_factory=list)

    def stage(self, layer: int) -> Stage:
        """The stage that decoder layer `layer` belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first_layer <= layer)

    def added(self, layer: int, device: torch.device) -> torch.Tensor | None:
        """What is added to the rows that are left after decoder layer `layer`, in their layout; None where nothing is."""
        if layer >= len(self.additions):
            return None
        stage, full = self.stage(layer).to(device), self.additions[layer].to(device)
        columns = [sample.columns.to(device)[rows] for sample, rows in zip(self.entry.samples, stage.rows, strict=True)]
        return stage.layout.pad([states[kept] for states, kept in zip(full, columns, strict=True)])

    def forget(self) -> None:
        """Let go of what the prefill alone needed."""
        self.additions = []
        for stage in self.stages:
            stage.masks, stage.position_embeddings = {}, {}
        self.embeddings = None
        for source in self.prompt.sources:
            source.encoder = None
            if source.tokens is not None:
                source.tokens.text = source.tokens.encoder = None
