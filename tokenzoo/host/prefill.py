"""One prefill: the prompt, what entered the LLM, the stages since. It is tied to the KV cache that it filled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenzoo.host.entry import Entry
from tokenzoo.host.prompt import Prompt
from tokenzoo.host.stages import Stage
from tokenzoo.method.validation import Checks


@dataclass
class Prefill:
    """What decoding steps, and the trace, need of a prefill."""

    prompt: Prompt
    entry: Entry
    stages: list[Stage]
    checks: Checks
    #: What enters layer 0, [batch, length, hidden], where methods act inside the LLM.
    embeddings: torch.Tensor | None = None

    def stage(self, layer: int) -> Stage:
        """The stage that decoder layer `layer` belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first_layer <= layer)

    def forget(self) -> None:
        """Let go of what the prefill alone needed."""
        for stage in self.stages:
            stage.mask = stage.position_embeddings = None
        self.embeddings = None
        for source in self.prompt.sources:
            source.encoder = None
            if source.tokens is not None:
                source.tokens.text = source.tokens.encoder = None
