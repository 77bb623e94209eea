"""One prefill: the prompt, what entered the LLM, the stages since. It is tied to the KV cache that it filled."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tokenzoo.host.cache import LastSeen
from tokenzoo.host.entry import Entry
from tokenzoo.host.prompt import Prompt, places
from tokenzoo.host.stages import Stage
from tokenzoo.method.decoder_layer import Places
from tokenzoo.method.validation import Checks
from tokenzoo.method.workload import Choice


@dataclass
class Prefill:
    """What decoding steps, and the trace, need of a prefill.

    `additions` [batch, prompt length, hidden]: what the host adds to the rows after each of the first layers (DeepStack).
    `cuts`: what a layer's KV cache holds, where it was cut after the prompt. `reads`: for each decoding step {layer: which of
    its cached visual tokens each sample read; None: all}. `choices`: of each sample those of the methods that choose how many
    tokens stay.
    """

    prompt: Prompt
    entry: Entry
    stages: list[Stage]
    checks: Checks
    #: What enters layer 0, [batch, length, hidden], where methods act inside the LLM.
    embeddings: torch.Tensor | None = None
    additions: list[torch.Tensor] = field(default_factory=list)
    cuts: dict[int, Stage] = field(default_factory=dict)
    reads: list[dict[int, list[torch.Tensor | None]]] = field(default_factory=list)
    choices: list[list[Choice]] = field(init=False)
    last_seen: LastSeen = field(default_factory=LastSeen)
    _cached_visual: dict[tuple[int, int, torch.device], torch.Tensor] = field(default_factory=dict)
    _places: dict[int, Places] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.choices = [[] for _ in self.entry.samples]

    @property
    def first_stage(self) -> Stage:
        """What layer 0 saw: all that entered, or what was left of it."""
        return self.stage(0)

    def places(self, sample: int) -> Places:
        """Which picture each entry row of a sample belongs to, and where it stands there; made once."""
        if sample not in self._places:
            rows = self.entry.samples[sample]
            self._places[sample] = places(self.prompt.of_sample(sample), rows.source_rows, len(rows.columns))
        return self._places[sample]

    def stage(self, layer: int) -> Stage:
        """The stage that decoder layer `layer` belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first_layer <= layer)

    def cached(self, layer: int) -> Stage:
        """What of the prompt the KV cache of decoder layer `layer` holds."""
        return self.cuts.get(layer) or self.stage(layer)

    def following(self, stage: Stage) -> torch.Tensor:
        """The position of the first generated token in a layer of which the cache holds `stage`, [batch]."""
        if stage.next_position is not None:
            return stage.next_position
        if self.entry.next_position is not None:
            return self.entry.next_position[0]
        return torch.stack([positions[-1] + 1 for positions in self.stages[0].positions])

    def cached_visual(self, layer: int, sample: int, device: torch.device) -> torch.Tensor:
        """The entry rows of the visual tokens in a layer's cache; the same tensor for layers that hold the same."""
        stage = self.cached(layer)
        key = (id(stage), sample, device)
        if key not in self._cached_visual:
            self._cached_visual[key] = stage.rows[sample][stage.visual[sample]].to(device)
        return self._cached_visual[key]

    def added(self, layer: int, device: torch.device) -> torch.Tensor | None:
        """What is added to the rows that decoder layer `layer` returns, in their layout; None where nothing is.

        Asked for before methods act after the layer: rows that are gone by then left after its attention.
        """
        if layer >= len(self.additions):
            return None
        stage, full = self.stage(layer + 1).to(device), self.additions[layer].to(device)
        columns = [sample.columns.to(device)[rows] for sample, rows in zip(self.entry.samples, stage.rows, strict=True)]
        return stage.layout.pad([states[kept] for states, kept in zip(full, columns, strict=True)])

    def entered_rows(self, layer: int, given: torch.Tensor) -> torch.Tensor:
        """Of what layer `layer` is given for each row that entered, [batch, rows, ...], that of the rows that are left."""
        stage, entered = self.stage(layer).to(given.device), self.entry.layout.to(given.device)
        return stage.layout.pad([entered.take(given, sample)[rows] for sample, rows in enumerate(stage.rows)])

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
