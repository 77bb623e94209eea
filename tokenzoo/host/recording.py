"""From a prefill's tensors to a Trace of plain numbers; done only when somebody asks for it."""

from __future__ import annotations

from tokenzoo.host.entry import Entry
from tokenzoo.host.prompt import PlacedSource, Prompt
from tokenzoo.host.stages import Stage
from tokenzoo.method.trace import SampleTrace, SourceTrace, Trace


def build_trace(layers: int, prompt: Prompt, entry: Entry, stages: list[Stage]) -> Trace:
    """The trace of one prefill."""
    return Trace(layers, [_sample(prompt, entry, stages, sample) for sample in range(len(entry.samples))])


def _sample(prompt: Prompt, entry: Entry, stages: list[Stage], sample: int) -> SampleTrace:
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
        stages=[(stage.first_layer, stage.rows[sample].tolist()) for stage in stages],
    )


def _source(source: PlacedSource, rows: list[int]) -> SourceTrace:
    visual, tokens = source.visual, source.tokens
    if tokens is None:
        counts = visual.source.view_tokens
        return SourceTrace(visual.source, visual.grids, tuple(rows), sum(visual.source.before_projector), counts)
    before_projector = source.projected is not None
    assert tokens.assignment is not None
    return SourceTrace(
        source=visual.source,
        grids=visual.encoder_grids if before_projector else visual.grids,
        rows=tuple(rows),
        projected=len(source.projected) if source.projected is not None else sum(visual.source.before_projector),
        view_counts=tuple(int((tokens.view == view).sum()) for view in range(len(tokens.grids))),
        assignment=tokens.assignment.tolist(),
    )
