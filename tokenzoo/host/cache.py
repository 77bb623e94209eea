"""The KV cache: what methods leave in it once the prompt is through, and what they let a decoding step read of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.batch import Layout
from tokenzoo.host.family import Family, Module
from tokenzoo.host.layer import QUERY, turned
from tokenzoo.host.refusals import check_rows
from tokenzoo.method import ops
from tokenzoo.method.cached_layer import CachedLayer, CacheRead

if TYPE_CHECKING:
    from tokenzoo.host.prefill import Prefill
    from tokenzoo.host.stages import Stage


class Queries:
    """The queries of the last rows of each sample in one layer, after the rotary embedding: [heads, rows, head dim] each.

    Of a prefill as many rows as methods read, in a decoding step the one that there is.
    """

    def __init__(self, family: Family, layer: Module, rows: int) -> None:
        self.family, self.layer, self.rows = family, layer, rows
        self.angles: tuple[torch.Tensor, torch.Tensor] | None = None
        self.of_sample: list[torch.Tensor] = []

    def watch(self, stage: Callable[[], Stage | None]) -> Any:
        """Record whenever `stage()` says of which rows the layer's output will be; before, `angles` must have been set."""

        def hook(module: Module, args: Any, output: torch.Tensor) -> None:
            now = stage()
            if now is None or self.angles is None:  # a method may ask the projection before its layer runs (PyramidDrop)
                return
            layout, self.of_sample = now.to(output.device).layout, []
            turning = [angle.to(output.device) for angle in self.angles]
            for sample in range(len(output)):
                states, *angles = (_last(given, sample, layout, self.rows) for given in (output, *turning))
                self.of_sample.append(turned(self.family, self.layer, QUERY, states, *angles))

        projections = self.family.decoder_projections(self.layer)
        assert projections is not None, "check_cache_methods refuses layers without keys"
        return projections[QUERY].register_forward_hook(hook)

    def forget(self) -> None:
        self.angles, self.of_sample = None, []


def _last(states: torch.Tensor, sample: int, layout: Layout, rows: int) -> torch.Tensor:
    """The last rows of a sample; the only one in a decoding step."""
    row = states[sample if len(states) > 1 else 0]
    return row if len(row) == 1 else layout.take(states, sample)[-rows:]


# --- after the prefill ----------------------------------------------------------------------------------------------


class CacheInSample:
    """`CacheSignals` of sample `sample`: layer `index`'s keys and values, and the queries that were recorded."""

    def __init__(self, prefill: Prefill, cache: Any, stage: Stage, index: int, queries: Queries | None, sample: int) -> None:
        self.prefill, self.cache, self.stage, self.sample = prefill, cache, stage, sample
        self.index, self.queries = index, queries
        self.scaling: float = queries.layer.self_attn.scaling if queries else 1.0

    def key(self) -> torch.Tensor:
        return self._states(self.cache.layers[self.index].keys)

    def value(self) -> torch.Tensor:
        return self._states(self.cache.layers[self.index].values)

    def query(self) -> torch.Tensor:
        if self.queries is None:
            raise RuntimeError("No queries were recorded: let query_rows() say of how many rows.")
        return self.queries.of_sample[self.sample]

    def alive(self, layer: int) -> torch.Tensor:
        there = self.prefill.stage(layer)
        return there.rows[self.sample][there.visual[self.sample]].to(self.stage.rows[self.sample].device)

    def _states(self, states: torch.Tensor) -> torch.Tensor:
        columns = self.stage.layout.columns[self.sample]
        return states[self.sample] if columns is None else states[self.sample][:, columns]


def cut(
    prefill: Prefill,
    cache: Any,
    layers: Sequence[int],
    num_layers: int,
    queries: dict[int, Queries],
    ask: Callable[[CachedLayer], bool],
) -> None:
    """Ask the methods what stays in the caches of `layers`; delete the rest. `ask` says whether positions begin anew.

    What a layer holds then stands in `prefill.cuts`.
    """
    layouts: dict[Any, Layout] = {}
    begun: dict[Any, torch.Tensor] = {}
    for index in layers:
        held = cache.layers[index]
        stage, device = prefill.stage(index).to(held.keys.device), held.keys.device
        samples = range(len(stage.rows))
        events = [
            CachedLayer(
                index=index,
                num_layers=num_layers,
                rows=stage.rows[sample],
                visual=stage.visual[sample],
                text=stage.text[sample],
                entered=len(prefill.entry.samples[sample].visual),
                signals=CacheInSample(prefill, cache, stage, index, queries.get(index), sample),
                memory=prefill.prompt.memory(sample),
                source_memories=[source.memory for source in prefill.prompt.of_sample(sample)],
                checks=prefill.checks,
                choices=prefill.choices[sample],
            )
            for sample in samples
        ]
        renumbered = [bool(len(event.visual)) and ask(event) for event in events]
        if all(len(event.rows) == len(rows) for event, rows in zip(events, stage.rows, strict=True)):
            continue
        check_rows([event.rows for event in events])
        counts = tuple(len(event.rows) for event in events)
        if (counts, device) not in layouts:  # equal layers share one, so that a decoding step builds one mask for them
            layouts[counts, device] = Layout.of_counts(counts, stage.layout.pad_right, device)
        layout = layouts[counts, device]
        columns = [_columns(stage.layout, event, device, sample) for sample, event in enumerate(events)]
        held.keys, held.values = (gathered(states, layout.pad(columns)) for states in (held.keys, held.values))
        following = stage.next_position
        if any(renumbered):
            key = (counts, stage.first_layer, tuple(renumbered), device)
            if key not in begun:
                begun[key] = _following(prefill, stage, counts, renumbered)
            following = begun[key]
        prefill.cuts[index] = replace(
            stage,
            layout=layout,
            rows=[event.rows for event in events],
            visual=[event.visual for event in events],
            text=[event.text for event in events],
            positions=[
                positions if event.kept is None else positions[..., event.kept]
                for positions, event in zip(stage.positions, events, strict=True)
            ],
            next_position=following,
        )


def _columns(layout: Layout, event: CachedLayer, device: torch.device, sample: int) -> torch.Tensor:
    """The columns of a cache that stay."""
    columns = layout.columns[sample]
    columns = torch.arange(layout.length, device=device) if columns is None else columns
    return columns if event.kept is None else columns[event.kept]


def _following(prefill: Prefill, stage: Stage, counts: Sequence[int], renumbered: Sequence[bool]) -> torch.Tensor:
    """The position of the first generated token in a layer with `counts` tokens cached, [batch]: where it is `renumbered` so
    many behind the sample's first token, whose key was turned by the position that it had; else what it would be."""
    before = prefill.following(stage).to(stage.rows[0].device)
    anew = [positions[0] + count for positions, count in zip(stage.positions, counts, strict=True)]
    return torch.stack([new if begin else old for begin, new, old in zip(renumbered, anew, before, strict=True)])


def gathered(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Keys or values [batch, heads, length, head dim] of some columns [batch or 1, columns]."""
    if len(columns) == 1:
        return states.index_select(2, columns[0])
    return states.gather(2, columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


# --- in a decoding step ---------------------------------------------------------------------------------------------


class Reading:
    """What one decoding step reads, layer by layer."""

    def __init__(self, prefill: Prefill, cache: Any, num_layers: int, generated: int, queries: dict[int, Queries]) -> None:
        self.prefill, self.cache, self.num_layers, self.generated, self.queries = prefill, cache, num_layers, generated, queries
        self.samples = range(len(prefill.entry.samples))
        self.picked: dict[int, list[torch.Tensor | None]] = {}
        self.weights: dict[tuple[int, int], torch.Tensor] = {}
        self.made: dict[tuple[int, ...], tuple[torch.Tensor, Layout]] = {}
        prefill.reads.append(self.picked)

    def attention(self, layer: int, index: int, sample: int) -> torch.Tensor:
        """The new token's attention in `layer` on the visual tokens in the cache of layer `index`, [heads, visual]."""
        there, here = self.prefill.cached(layer), self.prefill.cached(index)
        if (layer, sample) not in self.weights:
            queries, keys = self.queries[layer], self.cache.layers[layer].keys[sample]
            columns = there.layout.columns[sample]
            if columns is not None:
                new = torch.arange(there.layout.length, keys.shape[1], device=keys.device)
                keys = keys[:, torch.cat([columns.to(keys.device), new])]
            last = torch.arange(keys.shape[1] - 1, keys.shape[1], device=keys.device)
            made = ops.attention_weights(queries.of_sample[sample], keys, last, queries.layer.self_attn.scaling)
            self.weights[layer, sample] = made[:, 0, : len(there.rows[sample])]
        weights = self.weights[layer, sample]
        if here is there:
            return weights[:, there.visual[sample].to(weights.device)]
        entered = weights.new_zeros(len(weights), len(self.prefill.entry.samples[sample].columns))
        entered = entered.index_copy(1, there.rows[sample].to(weights.device), weights)
        return entered[:, here.rows[sample][here.visual[sample]].to(weights.device)]

    def choose(self, index: int, device: torch.device, ask: Callable[[CacheRead], None]) -> tuple[torch.Tensor, Layout] | None:
        """Ask the methods what layer `index` reads: the columns of the prompt in its cache [batch, length] and where each
        sample's lie among them; None where it reads all."""
        stage = self.prefill.cached(index)
        events = []
        for sample in self.samples:
            event = CacheRead(
                index=index,
                num_layers=self.num_layers,
                visual=self.prefill.cached_visual(index, sample, device),
                entered=len(self.prefill.entry.samples[sample].visual),
                generated=self.generated,
                signals=ReadInSample(self, sample, device),
                memory=self.prefill.prompt.memory(sample),
                source_memories=[source.memory for source in self.prefill.prompt.of_sample(sample)],
                checks=self.prefill.checks,
            )
            if len(event.visual):
                ask(event)
            events.append(event)
        picked = [event.picked for event in events]
        if all(one is None for one in picked):
            return None
        self.picked[index] = picked
        key = (id(stage), *map(id, picked))
        if key not in self.made:  # a method usually reads the same tokens in many layers
            columns = [self._columns(stage.to(device), one, sample, device) for sample, one in enumerate(picked)]
            layout = Layout.of_counts([len(one) for one in columns], True, device)
            self.made[key] = layout.pad(columns), layout
        return self.made[key]

    def _columns(self, stage: Stage, picked: torch.Tensor | None, sample: int, device: torch.device) -> torch.Tensor:
        columns = stage.layout.columns[sample]
        columns = torch.arange(stage.layout.length, device=device) if columns is None else columns
        if picked is None:
            return columns
        return columns[torch.cat([stage.text[sample], stage.visual[sample][picked]])]


@dataclass
class ReadInSample:
    """`ReadSignals` of one sample."""

    reading: Reading
    sample: int
    device: torch.device

    def attention(self, layer: int, index: int) -> torch.Tensor:
        if layer not in self.reading.queries:
            raise RuntimeError(f"The attention of layer {layer} was not recorded: let read_layers() name it.")
        return self.reading.attention(layer, index, self.sample).to(self.device)


class CacheView:
    """A cache of which one layer reads some columns of the prompt only; what is new goes into the whole cache."""

    def __init__(self, cache: Any, columns: torch.Tensor, prompt: int) -> None:
        self._cache, self._columns, self._prompt = cache, columns, prompt

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._cache.update(*args, **kwargs)
        since = torch.arange(self._prompt, keys.shape[2], device=keys.device).expand(len(self._columns), -1)
        columns = torch.cat([self._columns.to(keys.device), since], dim=1)
        return gathered(keys, columns), gathered(values, columns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


@dataclass
class LastSeen:
    """The cache as the last step left it: what methods remember of a sample must still be about its rows."""

    keys: ref[torch.Tensor] | None = field(default=None)

    def note(self, cache: Any) -> None:
        self.keys = ref(cache.layers[0].keys)

    def check(self, cache: Any, method: str) -> None:
        """Raise UnsupportedError where rows were reordered, dropped or replaced since (beam search, cropping)."""
        if self.keys is not None and self.keys() is not cache.layers[0].keys:
            raise UnsupportedError(
                f"The KV cache was reordered or changed between two decoding steps (beam search does), but '{method}' chooses "
                "what a step reads by what it remembers of the step before. Generate greedily or by sampling."
            )
