"""Price a recorded run: as it was, or carried over to another model, another number of tokens, another GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tokenzoo.cost.architecture import ModelArchitecture, load_architecture
from tokenzoo.cost.costs import Cost
from tokenzoo.cost.pricing import Schedulable, price_tokens
from tokenzoo.cost.vision import Grid, encoder_grids, square_grid
from tokenzoo.errors import UserError
from tokenzoo.method.trace import SampleTrace, SourceTrace, Trace
from tokenzoo.method.workload import Architecture, Recorded, RecordedSource, Workload


def price_trace(
    trace: Trace,
    model: ModelArchitecture | str,
    reducer: Schedulable | None = None,
    *,
    sample: int | None = None,
    scale: float = 1.0,
    text_tokens: int | None = None,
    grids: Sequence[Grid] | None = None,
    **options: Any,
) -> Cost:
    """Price the prefill that `trace` recorded on `model`; `options` as in `tokenzoo.cost.price`.

    `sample` picks one sample (default: the whole batch, each layer as long as its longest sample, as it ran).
    `scale` multiplies the visual tokens (a small model's 196 as 576: `scale=576 / 196`), `text_tokens` replaces the
    recorded ones, `grids` the views that enter the vision tower. A trace of another depth is read at the same relative
    depth. `reducer` adds the method's own products, where it counts them without seeing the picture. Raises UserError
    for impossible numbers.
    """
    model = load_architecture(model) if isinstance(model, str) else model
    if not math.isfinite(scale) or scale <= 0:
        raise UserError(f"scale must be a positive number, not {scale!r}.")
    chosen = _samples(trace, sample)
    layers = model.decoder.layers
    depth = [layer * trace.layers // layers for layer in range(layers)]
    tokens, visual, mlp = [0] * layers, [0] * layers, [0] * layers
    for index in chosen:
        counts, totals, left = trace.visual_tokens(index), trace.tokens(index), trace.mlp_visual_tokens(index)
        for layer, recorded in enumerate(depth):
            seen = round(counts[recorded] * scale)
            text = totals[recorded] - counts[recorded] if text_tokens is None else text_tokens
            tokens[layer], visual[layer] = max(tokens[layer], seen + text), max(visual[layer], seen)
            mlp[layer] = max(mlp[layer], round(left[recorded] * scale) + text)
    records = [source for index in chosen for source in trace.samples[index].sources]
    overhead = sum(reducer.overhead(workload_of(trace.samples[i], model.decoder)) for i in chosen) if reducer else 0
    return price_tokens(
        model,
        tokens,
        visual,
        mlp_tokens=mlp,
        grids=[grid for record in records for grid in _grids(model, record, scale)] if grids is None else grids,
        projector_tokens=round(sum(record.projected for record in records) * scale),
        overhead=overhead,
        method=str(reducer) if reducer else "recorded",
        **{"batch": len(chosen), **options},
    )


def _grids(model: ModelArchitecture, record: SourceTrace, scale: float) -> list[tuple[int, int]]:
    """The grids of the views that enter the vision tower; the real ones where the tower depends on them."""
    views = record.source.before_projector
    if scale == 1.0 and [height * width for height, width in record.grids] == list(views):
        return encoder_grids(record.source, record.grids)
    return encoder_grids(record.source, [square_grid(round(tokens * scale)) for tokens in views])


def recorded_run(sample: SampleTrace) -> Recorded:
    """What the picture decided in a recorded sample."""
    layers = max(first for first, _ in sample.stages) + 1
    trace = Trace(layers, [sample])
    sources = tuple(RecordedSource(record.steps) for record in sample.sources)
    return Recorded(sources, tuple(trace.visual_tokens()), sample.flops, tuple(trace.mlp_visual_tokens()))


def workload_of(sample: SampleTrace, decoder: Architecture, recorded: bool = True) -> Workload:
    """The workload of a recorded sample, with what it was reduced to: data-dependent schedules can be computed then."""
    visual = sum(record.source.tokens for record in sample.sources)
    sources = tuple(record.source for record in sample.sources)
    made = recorded_run(sample) if recorded else None
    text = {place for place, is_visual in zip(sample.entry, sample.visual, strict=True) if not is_visual}
    behind = next((number for number in range(len(text)) if sample.prompt_tokens - 1 - number not in text), None)
    return Workload(decoder, sources, sample.prompt_tokens - visual, made, behind)


def _samples(trace: Trace, sample: int | None) -> list[int]:
    if sample is None:
        if not trace.samples:
            raise UserError("The trace has no samples.")
        return list(range(len(trace.samples)))
    if not 0 <= sample < len(trace.samples):
        raise UserError(f"The trace has {len(trace.samples)} samples; there is no sample {sample}.")
    return [sample]
