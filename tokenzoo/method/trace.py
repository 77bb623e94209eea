"""What happened in a run: which tokens were there, per sample and layer. Cost, KV bytes, pictures and tests read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenzoo.errors import UserError
from tokenzoo.method.workload import Source

FORMAT = 2


@dataclass
class SourceTrace:
    """One image or video: what it was, and what became of each of its tokens before the LLM.

    `grids` are the (height, width) of each view in the tokens that were reduced first; `assignment` says for each of
    these tokens (views one after another) which entry row of the source it went into, -1 where it was dropped, and
    None where nothing was reduced before the LLM. `steps`: the tokens of each view that each method left, in order.
    """

    source: Source
    grids: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    projected: int
    view_counts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...] = ()
    assignment: list[int] | None = None


@dataclass
class SampleTrace:
    """One sample of a batch.

    `entry[row]` is the index in the full prompt (padding not counted) that row `row` of the LLM's input stands at;
    `visual[row]` tells whether it is a visual token. `stages` lists (first decoder layer, rows present), the first
    one with layer 0; a stage lasts until the next begins. `flops`: the methods' own matrix products, where they were
    counted while they ran.
    """

    prompt_tokens: int
    entry: list[int]
    visual: list[bool]
    sources: list[SourceTrace]
    stages: list[tuple[int, list[int]]]
    flops: int | None = None

    def rows(self, layer: int) -> list[int]:
        """The entry rows present in decoder layer `layer`, in sequence order."""
        return [rows for first, rows in self.stages if first <= layer][-1]


@dataclass
class Trace:
    """One prefill: the samples, and how many decoder layers they went through."""

    layers: int
    samples: list[SampleTrace] = field(default_factory=list)

    def tokens(self, sample: int = 0) -> list[int]:
        """Tokens (text and visual) in each layer: also the length of each layer's KV cache after prefill."""
        trace = self.samples[sample]
        return [len(trace.rows(layer)) for layer in range(self.layers)]

    def visual_tokens(self, sample: int = 0) -> list[int]:
        """Visual tokens in each layer."""
        trace = self.samples[sample]
        counts = {first: sum(trace.visual[row] for row in rows) for first, rows in trace.stages}
        firsts = sorted(counts)
        return [counts[max(first for first in firsts if first <= layer)] for layer in range(self.layers)]

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
                )
                for sample in data["samples"]
            ]
            return cls(layers=data["layers"], samples=samples)
        except OSError as error:
            raise UserError(f"Cannot read trace '{path}': {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"'{path}' is not a tokenzoo trace ({error}). Write one with 'tokenzoo run --trace'.") from None


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
    )
