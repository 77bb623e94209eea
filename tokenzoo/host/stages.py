"""Reductions inside the LLM: from which layer on which rows are left, and what those layers must be given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.masking_utils import create_causal_mask

from tokenzoo.host.batch import Layout
from tokenzoo.host.entry import Entry
from tokenzoo.host.family import LINEAR, Family, Module
from tokenzoo.host.layer import LayerInSample
from tokenzoo.host.masks import LayerTypes
from tokenzoo.host.refusals import check_rows
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.reduction import ActsAfter

if TYPE_CHECKING:
    from tokenzoo.host.prefill import Prefill


@dataclass
class Stage:
    """From `first_layer` on, these rows are left; `in_mlp`: the MLP of the layer before it works on them already.

    `rows` are entry rows per sample, in sequence order; `visual` and `text` indices into them. `positions` per sample,
    [rows] or [axes, rows]; `blocks` per sample, in which block of rows that see each other each is (None: causal).
    `position_embeddings` (cos, sin) [batch, length, head dim] and `masks` are what the prefill hands to the layers of each
    type; `next_position` [batch], where positions were renumbered, is that of the first generated token.
    """

    first_layer: int
    layout: Layout
    rows: list[torch.Tensor]
    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    positions: list[torch.Tensor]
    blocks: list[torch.Tensor] | None = None
    position_embeddings: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)
    next_position: torch.Tensor | None = None
    in_mlp: bool = False

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
            blocks=None if self.blocks is None else moved(self.blocks),
            next_position=None if self.next_position is None else self.next_position.to(device),
        )

    def prefill_inputs(self, layer_type: str, rows: int) -> dict[str, Any]:
        """What to change of the arguments of a layer in this stage during the prefill.

        `rows`: how many rows the layer is given; where they are fewer than the stage's, they are the last ones.
        """
        mask, embeddings = self.masks.get(layer_type), self.position_embeddings[layer_type]
        if rows < self.layout.length:
            mask = None if mask is None else mask[:, :, -rows:]
            embeddings = embeddings[0][:, -rows:], embeddings[1][:, -rows:]
        return {"attention_mask": mask, "position_embeddings": embeddings, "position_ids": None}

    @classmethod
    def of_entry(cls, entry: Entry, position_ids: torch.Tensor | None, blocks: torch.Tensor | None = None) -> Stage:
        """Layer 0: everything that entered. `position_ids` as the decoder is given them (None: 0, 1, ...); `blocks` [batch,
        prompt length]."""
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
            None if blocks is None else [row[sample.columns] for row, sample in zip(blocks, entry.samples, strict=True)],
        )


class LayerReduction:
    """What happens around one layer in or after which methods act: watch its q and k, ask the methods, drop the rows.

    `halves`: after which halves of the layer they act. Index -1 is the place before layer 0, whose arguments it reads.
    """

    def __init__(
        self,
        family: Family,
        decoder: Module,
        index: int,
        halves: Sequence[ActsAfter],
        reduce: Callable[[DecoderLayer], None],
    ) -> None:
        self.family, self.decoder, self.index, self.halves, self.reduce = family, decoder, index, halves, reduce
        self.types = LayerTypes(family, decoder)
        self.layer_type = self.types.of(max(index, 0))
        self.layer = decoder.layers[max(index, 0)]
        self.projected: dict[str, torch.Tensor] = {}
        self.inputs: torch.Tensor | None = None
        self.call: dict[str, Any] = {}
        self.seen: list[DecoderLayer] = []

    def begin(self, inputs: torch.Tensor, call: dict[str, Any]) -> None:
        """The layer is about to run on these."""
        self.inputs, self.call, self.seen = inputs, call, []

    def end(self) -> None:
        """Let go of what only this layer needed."""
        self.inputs, self.call, self.seen = None, {}, []

    def watch(self, active: Callable[[], bool]) -> list[Any]:
        """Keep references to the layer's q and k projections while `active` says a prefill runs."""

        def keep(name: str) -> Callable[..., None]:
            def hook(module: Module, args: Any, output: torch.Tensor) -> None:
                if active():
                    self.projected[name] = output

            return hook

        projections = self.family.decoder_projections(self.layer)
        if projections is None:
            return []
        query, key = projections
        return [query.register_forward_hook(keep("query")), key.register_forward_hook(keep("key"))]

    def events(self, prefill: Prefill, stage: Stage, output: torch.Tensor, after: ActsAfter) -> list[DecoderLayer]:
        """One event per sample: its rows alone, without padding. After the layer, those that its attention left."""
        assert self.inputs is not None
        prompt, entry = prefill.prompt, prefill.entry
        if self.seen:
            layout = prefill.stage(self.index + 1).layout
            return [
                replace(event, hidden_states=layout.take(output, sample), after=after) for sample, event in enumerate(self.seen)
            ]
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
                after=after,
                choices=prefill.choices[sample],
            )
            for sample in range(len(stage.layout.columns))
        ]

    def run(self, prefill: Prefill, output: torch.Tensor, after: ActsAfter) -> torch.Tensor | None:
        """Ask the methods; return the states without the dropped rows, with a new stage in the prefill, or None."""
        stage = prefill.stage(max(self.index, 0)).to(output.device)
        before = [event.kept for event in self.seen] or [None] * len(stage.rows)
        events = self.seen = self.events(prefill, stage, output, after)
        for event in events:
            if len(event.visual):
                self.reduce(event)
        if after == self.halves[-1]:
            self.projected.clear()
        if all(event.kept is known for event, known in zip(events, before, strict=True)):
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
            blocks=None if stage.blocks is None else [block[left] for block, left in zip(stage.blocks, kept, strict=True)],
            in_mlp=after == "attention" and self.index >= 0,
        )
        check_rows(following.rows)
        self._set_positions(following, stage, events, kept, hidden)
        if following.first_layer < len(self.decoder.layers):
            self._set_mask(following, hidden)
        prefill.stages.append(following)
        return hidden

    def _set_positions(
        self, following: Stage, stage: Stage, events: list[DecoderLayer], kept: list[torch.Tensor], hidden: torch.Tensor
    ) -> None:
        following.next_position = stage.next_position
        renumbered = [event.renumbered is not None for event in events]
        for layer_type, index in self.types.since(following.first_layer).items():
            if any(renumbered) or not self.types.turn_alike(index, max(self.index, 0)):
                positions = following.layout.pad(following.positions)
                following.position_embeddings[layer_type] = self.types.rotary(hidden, positions, layer_type)
            else:
                following.position_embeddings[layer_type] = tuple(  # type: ignore[assignment]
                    following.layout.pad([stage.layout.take(states, sample)[rows] for sample, rows in enumerate(kept)])
                    for states in (angles.to(hidden.device) for angles in self.call["position_embeddings"])
                )
        if any(renumbered):
            before = stage.next_position
            if before is None:
                before = torch.stack([positions[-1] + 1 for positions in stage.positions])
            counts = torch.tensor([len(rows) for rows in kept], device=hidden.device)
            following.next_position = torch.where(torch.tensor(renumbered, device=hidden.device), counts, before)

    def _set_mask(self, following: Stage, hidden: torch.Tensor) -> None:
        """No mask where the model had none and no sample is padded; else one that the model's backend builds."""
        if self.types.several:
            layout, blocks = following.layout, following.blocks
            following.masks = self.types.prefill_masks(following.first_layer, layout, following.positions, blocks, hidden)
            return
        linear = self.layer_type == LINEAR  # whose mask does not tell whether the others have one
        if self.call.get("attention_mask") is None and not following.layout.padded and not linear:
            return
        padding = following.layout.mask(hidden.device) if following.layout.padded else None
        for layer_type, index in self.types.since(following.first_layer).items():
            following.masks[layer_type] = (
                padding
                if layer_type == LINEAR
                else create_causal_mask(
                    config=self.decoder.config,
                    inputs_embeds=hidden,
                    attention_mask=padding,
                    past_key_values=self.call.get("past_key_values"),
                    layer_idx=index,
                    # whether the mask could be left out is asked of the device; without padding there is none anyway
                    allow_is_causal_skip=not following.layout.padded,
                )
            )
