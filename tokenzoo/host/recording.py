"""From a prefill's tensors to a Trace of plain numbers; done only when somebody asks for it."""

from __future__ import annotations

import torch

from tokenzoo.host.prefill import Prefill
from tokenzoo.host.prompt import PlacedSource
from tokenzoo.method.trace import EncoderTrace, SampleTrace, SourceTrace, Trace
from tokenzoo.method.workload import Source


def build_trace(layers: int, prefill: Prefill) -> Trace:
    """The trace of one prefill."""
    return Trace(layers, [_sample(prefill, sample) for sample in range(len(prefill.entry.samples))])


def _sample(prefill: Prefill, sample: int) -> SampleTrace:
    prompt, entry, stages = prefill.prompt, prefill.entry, prefill.stages
    rows = entry.samples[sample]
    full = entry.full.columns[sample]
    rank = {column: index for index, column in enumerate(range(entry.full.length) if full is None else full.tolist())}
    visual = [False] * len(rows.columns)
    for row in rows.visual.tolist():
        visual[row] = True
    return SampleTrace(
        prompt_tokens=entry.full.count(sample),
        entry=[rank[column] for column in rows.columns.tolist()],
        visual=visual,
        sources=[
            _source(source, source_rows.tolist())
            for source, source_rows in zip(prompt.of_sample(sample), rows.source_rows, strict=True)
        ],
        stages=list({stage.first_layer: stage.rows[sample].tolist() for stage in stages}.items()),
        mlp_stages=[(stage.first_layer - 1, stage.rows[sample].tolist()) for stage in stages if stage.in_mlp],
        cached=_grouped({layer: stage.rows[sample].tolist() for layer, stage in prefill.cuts.items()}),
        reads=[_grouped(_read_rows(prefill, sample, step)) for step in prefill.reads],
        choices=list(prefill.choices[sample]),
    )


def _read_rows(prefill: Prefill, sample: int, step: dict[int, list[torch.Tensor | None]]) -> dict[int, list[int]]:
    """The visual rows of a sample that each layer read in a decoding step, where it read a part."""
    found: dict[int, list[int]] = {}
    for layer, picked in step.items():
        stage, one = prefill.cached(layer), picked[sample]
        if one is not None:
            found[layer] = stage.rows[sample][stage.visual[sample]][one.sort().values.to(stage.rows[sample].device)].tolist()
    return found


def _grouped(rows: dict[int, list[int]]) -> list[tuple[list[int], list[int]]]:
    """Runs of layers with the same rows."""
    groups: list[tuple[list[int], list[int]]] = []
    for layer, own in sorted(rows.items()):
        if groups and groups[-1][1] == own and groups[-1][0][-1] == layer - 1:
            groups[-1][0].append(layer)
        else:
            groups.append(([layer], own))
    return groups


def _source(source: PlacedSource, rows: list[int]) -> SourceTrace:
    visual, tokens = source.visual, source.tokens
    steps = tuple(_counts(step.view, step.views) for step in source.steps)
    encoder = _encoder(source)
    if tokens is None:
        counts = visual.source.view_tokens
        return SourceTrace(visual.source, visual.grids, tuple(rows), _unreduced(visual.source), counts, steps, None, encoder)
    before_projector = source.projected is not None
    assert tokens.assignment is not None
    return SourceTrace(
        source=visual.source,
        grids=visual.encoder_grids if before_projector else visual.grids,
        rows=tuple(rows),
        projected=len(source.projected) + visual.source.through if source.projected is not None else _unreduced(visual.source),
        view_counts=_counts(tokens.view, len(tokens.grids)),
        steps=steps,
        assignment=tokens.assignment.tolist(),
        encoder=encoder,
    )


def _encoder(source: PlacedSource) -> EncoderTrace | None:
    inside = source.inside
    if inside is None:
        return None
    left_in = [-1] * (inside.views * inside.patches) if inside.left_in is None else inside.left_in.flatten().tolist()
    return EncoderTrace(inside.layers, tuple(inside.cuts), left_in)


def _unreduced(source: Source) -> int:
    """Tokens that pass the projector where nothing is dropped before it."""
    return sum(source.before_projector) + source.through


def _counts(view: torch.Tensor, views: int) -> tuple[int, ...]:
    """How many tokens each view has, from the view of each token."""
    return tuple(torch.bincount(view, minlength=views).tolist())
