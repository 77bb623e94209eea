"""Reductions inside the LLM: from which layer on which rows are left, and what those layers must be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from tokenzoo.host.batch import Layout
from tokenzoo.host.entry import Entry
from tokenzoo.host.family import Family, Module
from tokenzoo.host.prompt import Prompt
from tokenzoo.method.events import DecoderLayer


@dataclass
class Stage:
    """From `first_layer` on, these rows are left.

    `rows` are entry rows per sample; `visual` and `text` indices into them. `position_embeddings` (cos, sin)
    [batch, length, head dim] and `mask` are what the prefill hands to each layer; `next_position` [batch], where
    positions were renumbered, is the position of the first generated token.
    """

    first_layer: int
    layout: Layout
    rows: list[torch.Tensor]
    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: Any = None
    next_position: torch.Tensor | None = None

    def prefill_inputs(self) -> dict[str, Any]:
        """What to change of the arguments of a layer in this stage during the prefill."""
        return {"attention_mask": self.mask, "position_embeddings": self.position_embeddings, "position_ids": None}

    @classmethod
    def of_entry(cls, entry: Entry) -> Stage:
        """Layer 0: everything that entered."""
        return cls(
            0,
            entry.layout,
            [torch.arange(len(sample.columns), device=sample.columns.device) for sample in entry.samples],
            [sample.visual for sample in entry.samples],
            [sample.text for sample in entry.samples],
        )


class LayerReduction:
    """What happens around one layer after which methods act: watch its q and k, ask the methods, drop the rows."""

    def __init__(self, family: Family, decoder: Module, index: int, reduce: Callable[[DecoderLayer], None]) -> None:
        self.family, self.decoder, self.index, self.reduce = family, decoder, index, reduce
        self.layer = decoder.layers[index]
        self.projected: dict[str, torch.Tensor] = {}
        self.inputs: torch.Tensor | None = None
        self.call: dict[str, Any] = {}

    def watch(self, active: Callable[[], bool]) -> list[Any]:
        """Keep references to the layer's q and k projections while `active` says a prefill runs."""

        def keep(name: str) -> Callable[..., None]:
            def hook(module: Module, args: Any, output: torch.Tensor) -> None:
                if active():
                    self.projected[name] = output

            return hook

        query, key = self.family.decoder_projections(self.layer)
        return [query.register_forward_hook(keep("query")), key.register_forward_hook(keep("key"))]

    def events(self, stage: Stage, prompt: Prompt, entered: list[int], output: torch.Tensor) -> list[DecoderLayer]:
        """One event per sample: its rows alone, without padding."""
        cos, sin = self.call["position_embeddings"]
        return [self._event(stage, prompt, entered, output, cos, sin, sample) for sample in range(len(stage.layout.columns))]

    def _event(
        self,
        stage: Stage,
        prompt: Prompt,
        entered: list[int],
        output: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        sample: int,
    ) -> DecoderLayer:
        take, attention = stage.layout.take, self.layer.self_attn
        assert self.inputs is not None
        hidden = take(output, sample)
        cos, sin = take(cos, sample), take(sin, sample)

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)

        def query_key() -> tuple[torch.Tensor, torch.Tensor]:
            both = [heads(take(self.projected[name], sample)) for name in ("query", "key")]
            query, key = (self.family.rotate(self.layer, states, cos, sin) for states in both)
            return query, key

        def next_query_key(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            following = self.decoder.layers[self.index + 1]
            query_projection, key_projection = self.family.decoder_projections(following)
            normed = following.input_layernorm(hidden)
            query = self.family.rotate(following, heads(query_projection(normed[rows])), cos[rows], sin[rows])
            return query, self.family.rotate(following, heads(key_projection(normed)), cos, sin)

        return DecoderLayer(
            index=self.index,
            num_layers=len(self.decoder.layers),
            hidden_states=hidden,
            inputs=take(self.inputs, sample),
            visual=stage.visual[sample],
            text=stage.text[sample],
            entered=entered[sample],
            memory=prompt.memory(sample),
            source_memories=[source.memory for source in prompt.of_sample(sample)],
            scaling=attention.scaling,
            query_key=query_key,
            next_query_key=next_query_key,
        )

    def run(
        self, stage: Stage, prompt: Prompt, entered: list[int], output: torch.Tensor, renumber: bool
    ) -> tuple[Stage, torch.Tensor] | None:
        """Ask the methods; return the next stage and the layer's output without the dropped rows, or None."""
        events = self.events(stage, prompt, entered, output)
        for event in events:
            if len(event.visual):
                self.reduce(event)
        self.projected.clear()
        if all(event.kept is None for event in events):
            return None
        kept = [
            torch.arange(len(event.hidden_states), device=output.device) if event.kept is None else event.kept for event in events
        ]
        layout = Layout.of_counts([len(rows) for rows in kept], stage.layout.pad_right, output.device)
        hidden = layout.pad([event.hidden_states for event in events])
        following = Stage(
            first_layer=self.index + 1,
            layout=layout,
            rows=[rows[left] for rows, left in zip(stage.rows, kept, strict=True)],
            visual=[event.visual for event in events],
            text=[event.text for event in events],
        )
        self._set_positions(following, stage, kept, hidden, renumber)
        self._set_mask(following, hidden)
        return following, hidden

    def _set_positions(
        self, following: Stage, stage: Stage, kept: list[torch.Tensor], hidden: torch.Tensor, renumber: bool
    ) -> None:
        if renumber:
            counts = torch.tensor([len(rows) for rows in kept], device=hidden.device)
            positions = [torch.arange(len(rows), device=hidden.device) for rows in kept]
            following.position_embeddings = self.decoder.rotary_emb(hidden, following.layout.pad(positions))
            following.next_position = counts
            return
        cos, sin = self.call["position_embeddings"]
        following.position_embeddings = tuple(  # type: ignore[assignment]
            following.layout.pad([stage.layout.take(states, sample)[rows] for sample, rows in enumerate(kept)])
            for states in (cos, sin)
        )
        following.next_position = stage.next_position

    def _set_mask(self, following: Stage, hidden: torch.Tensor) -> None:
        """No mask where the model had none and no sample is padded; else one that the model's backend builds."""
        if self.call.get("attention_mask") is None and not following.layout.padded:
            return
        following.mask = create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=following.layout.mask(hidden.device) if following.layout.padded else None,
            past_key_values=self.call.get("past_key_values"),
            layer_idx=self.index + 1,
        )
