"""Price a recorded run: as it was, or carried over to another model, another number of tokens, another GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenzoo.cost.architecture import ModelArchitecture, load_architecture
from tokenzoo.cost.costs import Cost
from tokenzoo.cost.pricing import Schedulable, price_tokens
from tokenzoo.cost.vision import Grid, encoder_grids, square_grid
from tokenzoo.errors import UserError
from tokenzoo.method.trace import SampleTrace, SourceTrace, Trace
from tokenzoo.method.workload import Architecture, EncoderCut, Recorded, RecordedSource, Workload


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
    tokens, visual, mlp, cached, read = ([0] * layers for _ in range(5))
    entered = 0
    for index in chosen:
        counts, totals, left = trace.visual_tokens(index), trace.tokens(index), trace.mlp_visual_tokens(index)
        cache, reads = trace.cache_tokens(index), trace.read_tokens(index)
        if reducer and options.get("decode") and not trace.samples[index].reads:  # nothing was generated: what is declared
            reads = reducer.read_schedule(workload_of(trace.samples[index], replace(model.decoder, layers=trace.layers)))
        is_visual = trace.samples[index].visual
        text = is_visual.count(False) if text_tokens is None else text_tokens
        entered = max(entered, round(is_visual.count(True) * scale) + text)
        for layer, recorded in enumerate(depth):
            seen = round(counts[recorded] * scale)
            tokens[layer], visual[layer] = max(tokens[layer], seen + text), max(visual[layer], seen)
            mlp[layer] = max(mlp[layer], round(left[recorded] * scale) + text)
            held = cache[recorded] - totals[recorded] + counts[recorded]
            cached[layer] = max(cached[layer], round(held * scale) + text)
            read[layer] = max(read[layer], round(reads[recorded] * scale) + text)
    records = [source for index in chosen for source in trace.samples[index].sources]
    cuts = [cut for record in records for cut in [_cuts(model, record, scale)] * len(record.source.before_projector)]
    workloads = [workload_of(trace.samples[index], model.decoder) for index in chosen]
    overhead = sum(map(reducer.overhead, workloads)) if reducer else 0
    own_steps = [reducer.decode_overhead(own, options.get("decode", 0)) for own in workloads] if reducer else []
    return price_tokens(
        model,
        tokens,
        visual,
        entered=entered,
        mlp_tokens=mlp,
        grids=[grid for record in records for grid in _grids(model, record, scale)] if grids is None else grids,
        encoder_cuts=cuts if any(cuts) else (),
        projector_tokens=round(sum(record.projected for record in records) * scale),
        overhead=overhead,
        cached=cached,
        read=read,
        decode_overhead=(sum(first for first, _ in own_steps), sum(total for _, total in own_steps)),
        method=str(reducer) if reducer else "recorded",
        **{"batch": len(chosen), **options},
    )


def _grids(model: ModelArchitecture, record: SourceTrace, scale: float) -> list[tuple[int, int]]:
    """The grids of the views that enter the vision tower; the real ones where the tower depends on them."""
    views = record.source.before_projector
    if scale == 1.0 and [height * width for height, width in record.grids] == list(views):
        return encoder_grids(record.source, record.grids)
    return encoder_grids(record.source, [square_grid(round(tokens * scale)) for tokens in views])


def _cuts(model: ModelArchitecture, record: SourceTrace, scale: float) -> tuple[EncoderCut, ...]:
    """Where patches of each view leave inside the vision tower: at the same relative depth, as large a share."""
    if record.encoder is None or model.vision is None:
        return ()
    recorded, layers = record.encoder, model.vision.layers
    return tuple(EncoderCut(cut.layer * layers // recorded.layers, cut.after, round(cut.left * scale)) for cut in recorded.cuts)


def recorded_run(sample: SampleTrace) -> Recorded:
    """What the picture decided in a recorded sample."""
    layers = max(first for first, _ in sample.stages) + 1
    trace = Trace(layers, [sample])
    sources = tuple(
        RecordedSource(record.steps, tuple(cut.left for cut in record.encoder.cuts) if record.encoder else ())
        for record in sample.sources
    )
    cached, read = (
        tuple((layer, sum(sample.visual[row] for row in rows)) for layers, rows in groups for layer in layers)
        for groups in (sample.cached, sample.reads[0] if sample.reads else [])
    )
    choices = tuple(sample.choices)
    return Recorded(sources, tuple(trace.visual_tokens()), sample.flops, tuple(trace.mlp_visual_tokens()), cached, read, choices)


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
