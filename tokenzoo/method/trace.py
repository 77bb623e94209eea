"""What happened in a run: which tokens were there, per sample and layer. Cost, KV bytes, pictures and tests read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenzoo.errors import UserError
from tokenzoo.method.reduction import HALVES, ActsAfter
from tokenzoo.method.workload import Choice, EncoderCut, Source

FORMAT = 2


@dataclass
class EncoderTrace:
    """What became of one image's or video's patches inside an encoder of `layers` layers.

    `cuts`: for each half of a layer after which a method was asked, in order, how many patches of each view were left.
    `left_in`: for each patch (views one after another) the encoder layer in which it was dropped or became part of another
    one's token, -1 where it has a token to the end.
    """

    layers: int
    cuts: tuple[EncoderCut, ...]
    left_in: list[int]


@dataclass
class SourceTrace:
    """One image or video: what it was, and what became of each of its tokens before the LLM.

    `grids` are the (height, width) of each view in the tokens that were reduced first; `assignment` says for each of
    these tokens (views one after another) which entry row of the source it went into, -1 where it was dropped, and
    None where nothing was reduced before the LLM. `steps`: the tokens of each view that each method left, in order.
    `encoder`: what left inside the encoder; None where no method acts there.
    """

    source: Source
    grids: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    projected: int
    view_counts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...] = ()
    assignment: list[int] | None = None
    encoder: EncoderTrace | None = None


@dataclass
class SampleTrace:
    """One sample of a batch.

    `entry[row]` is the index in the full prompt (padding not counted) that row `row` of the LLM's input stands at;
    `visual[row]` tells whether it is a visual token. `stages` lists (first decoder layer, rows present), the first
    one with layer 0; a stage lasts until the next begins. `mlp_stages` lists (decoder layer, rows present) for the layers in
    which rows left after attention: what their MLP saw. `flops`: the methods' own matrix products, where they were counted
    while they ran. `cached` lists (decoder layers, rows left in their KV caches) for caches that were cut after the prompt.
    `reads` holds for each decoding step so far (decoder layers, visual rows that they read) where they read a part. `choices`:
    how many tokens a method left where it chose the number itself.
    """

    prompt_tokens: int
    entry: list[int]
    visual: list[bool]
    sources: list[SourceTrace]
    stages: list[tuple[int, list[int]]]
    flops: int | None = None
    mlp_stages: list[tuple[int, list[int]]] = field(default_factory=list)
    cached: list[tuple[list[int], list[int]]] = field(default_factory=list)
    reads: list[list[tuple[list[int], list[int]]]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def rows(self, layer: int) -> list[int]:
        """The entry rows present in decoder layer `layer`, in sequence order: its attention's, and so its KV cache's.

        Those of the layer behind the last one are what is left at the end; those of layer -1 all that entered.
        """
        return next((rows for first, rows in reversed(self.stages) if first <= layer), list(range(len(self.entry))))

    def mlp_rows(self, layer: int) -> list[int]:
        """The entry rows that the MLP of decoder layer `layer` saw."""
        return dict(self.mlp_stages).get(layer, self.rows(layer))

    def exits(self) -> dict[int, tuple[int, ActsAfter]]:
        """For each entry row that did not stay to the end, after which layer, or after which layer's "attention", it left.

        (-1, "attention") is the place before layer 0.
        """
        points = [((first - 1, HALVES[first > 0]), rows) for first, rows in self.stages]
        points += [((layer, HALVES[0]), rows) for layer, rows in self.mlp_stages]
        found: dict[int, tuple[int, ActsAfter]] = {}
        present = set(range(len(self.entry)))
        for point, rows in sorted(points, key=lambda made: (made[0][0], HALVES.index(made[0][1]))):
            found |= dict.fromkeys(present - set(rows), point)
            present = set(rows)
        return found

    def cache(self, layer: int) -> list[int]:
        """The entry rows in the KV cache of decoder layer `layer` after the prompt, in sequence order."""
        return next((rows for layers, rows in self.cached if layer in layers), self.rows(layer))

    def read(self, step: int, layer: int) -> list[int]:
        """The visual rows that decoder layer `layer` read in decoding step `step` (from 0)."""
        reads = self.reads[step] if step < len(self.reads) else []
        everything = [row for row in self.cache(layer) if self.visual[row]]
        return next((rows for layers, rows in reads if layer in layers), everything)


@dataclass
class Trace:
    """One prefill: the samples, and how many decoder layers they went through."""

    layers: int
    samples: list[SampleTrace] = field(default_factory=list)

    def tokens(self, sample: int = 0) -> list[int]:
        """Tokens (text and visual) in each layer: also the length of its KV cache after the prefill, where none was cut."""
        trace = self.samples[sample]
        return [len(trace.rows(layer)) for layer in range(self.layers)]

    def cache_tokens(self, sample: int = 0) -> list[int]:
        """The length of each layer's KV cache after the prefill."""
        trace = self.samples[sample]
        return [len(trace.cache(layer)) for layer in range(self.layers)]

    def read_tokens(self, sample: int = 0, step: int = 0) -> list[int]:
        """How many visual tokens each layer read in a decoding step (from 0)."""
        return [len(self.samples[sample].read(step, layer)) for layer in range(self.layers)]

    def visual_tokens(self, sample: int = 0) -> list[int]:
        """Visual tokens in each layer."""
        trace = self.samples[sample]
        counts = {first: sum(trace.visual[row] for row in rows) for first, rows in trace.stages}
        firsts = sorted(counts)
        return [counts[max(first for first in firsts if first <= layer)] for layer in range(self.layers)]

    def mlp_tokens(self, sample: int = 0) -> list[int]:
        """Tokens (text and visual) that each layer's MLP saw."""
        counts, trace = self.tokens(sample), self.samples[sample]
        for layer, rows in trace.mlp_stages:
            counts[layer] = len(rows)
        return counts

    def mlp_visual_tokens(self, sample: int = 0) -> list[int]:
        """Visual tokens that each layer's MLP saw."""
        counts, trace = self.visual_tokens(sample), self.samples[sample]
        for layer, rows in trace.mlp_stages:
            counts[layer] = sum(trace.visual[row] for row in rows)
        return counts

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON."""
        Path(path).write_text(json.dumps({"format": FORMAT, **asdict(self)}))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace; raises UserError where the file is none."""
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            samples = [
                SampleTrace(
                    prompt_tokens=sample["prompt_tokens"],
                    entry=sample["entry"],
                    visual=sample["visual"],
                    sources=[_source(source) for source in sample["sources"]],
                    stages=[(first, rows) for first, rows in sample["stages"]],
                    flops=sample["flops"],
                    mlp_stages=[(layer, rows) for layer, rows in sample.get("mlp_stages", [])],
                    cached=_groups(sample.get("cached", [])),
                    reads=[_groups(step) for step in sample.get("reads", [])],
                    choices=[Choice(*choice) for choice in sample.get("choices", [])],
                )
                for sample in data["samples"]
            ]
            return cls(layers=data["layers"], samples=samples)
        except OSError as error:
            raise UserError(f"Cannot read trace '{path}': {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"'{path}' is not a tokenzoo trace ({error}). Write one with 'tokenzoo run --trace'.") from None


def _groups(data: list) -> list[tuple[list[int], list[int]]]:
    return [(layers, rows) for layers, rows in data]


def _source(data: dict) -> SourceTrace:
    source = data["source"]
    return SourceTrace(
        source=Source(
            source["kind"],
            tuple(source["view_tokens"]),
            source["structural"],
            tuple(source["encoder_views"]),
            tuple(tuple(grid) for grid in source["grids"]),
            source.get("through", 0),
        ),
        grids=tuple(tuple(grid) for grid in data["grids"]),
        rows=tuple(data["rows"]),
        projected=data["projected"],
        view_counts=tuple(data["view_counts"]),
        steps=tuple(tuple(step) for step in data["steps"]),
        assignment=data["assignment"],
        encoder=_encoder(data.get("encoder")),
    )


def _encoder(data: dict | None) -> EncoderTrace | None:
    if data is None:
        return None
    return EncoderTrace(data["layers"], tuple(EncoderCut(*cut) for cut in data["cuts"]), data["left_in"])
