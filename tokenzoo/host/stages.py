"""Reductions inside the LLM: from which layer on which rows are left, and what those layers must be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.masking_utils import create_causal_mask

from tokenzoo.host.batch import Layout
from tokenzoo.host.entry import Entry
from tokenzoo.host.family import Family, Module
from tokenzoo.host.layer import LayerInSample
from tokenzoo.method.decoder_layer import DecoderLayer

if TYPE_CHECKING:
    from tokenzoo.host.prefill import Prefill


@dataclass
class Stage:
    """From `first_layer` on, these rows are left.

    `rows` are entry rows per sample, in sequence order; `visual` and `text` indices into them. `positions` per sample,
    [rows] or [axes, rows]. `position_embeddings` (cos, sin) [batch, length, head dim] and `mask` are what the prefill
    hands to each layer; `next_position` [batch], where positions were renumbered, is that of the first generated token.
    """

    first_layer: int
    layout: Layout
    rows: list[torch.Tensor]
    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    positions: list[torch.Tensor]
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: Any = None
    next_position: torch.Tensor | None = None

    def to(self, device: torch.device) -> Stage:
        """The same stage for a layer on `device`; itself where it lies there already."""
        if all(rows.device == device for rows in self.rows):
            return self

        def moved(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            return [tensor.to(device) for tensor in tensors]

        return replace(
            self,
            layout=self.layout.to(device),
            rows=moved(self.rows),
            visual=moved(self.visual),
            text=moved(self.text),
            positions=moved(self.positions),
            next_position=None if self.next_position is None else self.next_position.to(device),
        )

    def prefill_inputs(self) -> dict[str, Any]:
        """What to change of the arguments of a layer in this stage during the prefill."""
        return {"attention_mask": self.mask, "position_embeddings": self.position_embeddings, "position_ids": None}

    @classmethod
    def of_entry(cls, entry: Entry, position_ids: torch.Tensor | None) -> Stage:
        """Layer 0: everything that entered. `position_ids` as the decoder is given them (None: 0, 1, ...)."""
        batch, device = len(entry.samples), entry.samples[0].columns.device
        if position_ids is None:
            position_ids = torch.arange(entry.layout.length)[None]
        position_ids = position_ids.to(device)
        three = position_ids.ndim == 3
        positions = [
            entry.layout.take(position_ids[-3:].permute(1, 2, 0), sample).T if three else entry.layout.take(position_ids, sample)
            for sample in range(batch)
        ]
        return cls(
            0,
            entry.layout,
            [torch.arange(len(sample.columns), device=sample.columns.device) for sample in entry.samples],
            [sample.visual for sample in entry.samples],
            [sample.text for sample in entry.samples],
            positions,
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

    def events(self, prefill: Prefill, stage: Stage, output: torch.Tensor) -> list[DecoderLayer]:
        """One event per sample: its rows alone, without padding."""
        assert self.inputs is not None
        prompt, entry = prefill.prompt, prefill.entry
        return [
            DecoderLayer(
                index=self.index,
                num_layers=len(self.decoder.layers),
                hidden_states=stage.layout.take(output, sample),
                inputs=stage.layout.take(self.inputs.to(output.device), sample),
                visual=stage.visual[sample],
                text=stage.text[sample],
                entered=len(entry.samples[sample].visual),
                signals=LayerInSample(self, prefill, stage, sample),
                memory=prompt.memory(sample),
                source_memories=[source.memory for source in prompt.of_sample(sample)],
                text_behind=entry.samples[sample].text_behind,
                checks=prefill.checks,
            )
            for sample in range(len(stage.layout.columns))
        ]

    def run(self, prefill: Prefill, output: torch.Tensor) -> tuple[Stage, torch.Tensor] | None:
        """Ask the methods; return the next stage and the layer's output without the dropped rows, or None."""
        stage = prefill.stage(self.index).to(output.device)
        events = self.events(prefill, stage, output)
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
            positions=[
                event.renumbered if event.renumbered is not None else positions[..., left]
                for event, positions, left in zip(events, stage.positions, kept, strict=True)
            ],
        )
        self._set_positions(following, stage, events, kept, hidden)
        self._set_mask(following, hidden)
        return following, hidden

    def _set_positions(
        self, following: Stage, stage: Stage, events: list[DecoderLayer], kept: list[torch.Tensor], hidden: torch.Tensor
    ) -> None:
        following.next_position = stage.next_position
        renumbered = [event.renumbered is not None for event in events]
        if any(renumbered):
            following.position_embeddings = self.decoder.rotary_emb(hidden, following.layout.pad(following.positions))
            before = stage.next_position
            if before is None:
                before = torch.stack([positions[-1] + 1 for positions in stage.positions])
            counts = torch.tensor([len(rows) for rows in kept], device=hidden.device)
            following.next_position = torch.where(torch.tensor(renumbered, device=hidden.device), counts, before)
            return
        cos, sin = (states.to(hidden.device) for states in self.call["position_embeddings"])
        following.position_embeddings = tuple(  # type: ignore[assignment]
            following.layout.pad([stage.layout.take(states, sample)[rows] for sample, rows in enumerate(kept)])
            for states in (cos, sin)
        )

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
            # whether the mask could be left out is asked of the device; without padding there is none anyway
            allow_is_causal_skip=not following.layout.padded,
        )
