"""The cells of a comparison: what one method measures on one task, and one interleaved timing of several methods.

Each function runs the model and returns plain data that the store keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import TypeAdapter

import tokenzoo
from tokenzoo.bench.evaluate import predict
from tokenzoo.bench.task import Question
from tokenzoo.bench.timing import Timed, time_methods
from tokenzoo.cost import ModelArchitecture, architecture_of, price_trace
from tokenzoo.models import Checkpoint
from tokenzoo.pipeline import Pipeline
from tokenzoo.trace import Trace

WIDTHS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def accuracy_cell(
    checkpoint: Checkpoint,
    method: Pipeline,
    questions: Sequence[Question],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Answer the questions with the method at work: answers, and what its traces say about tokens, FLOPs and KV bytes.

    All counts are means over the questions. `trace` is the recorded run of the question in the middle (by visual
    tokens): data-dependent methods are priced on other architectures from it.
    """
    answers: list[dict[str, Any]] = []
    records: list[tuple[float, Trace, int]] = []
    with tokenzoo.apply(checkpoint.model, method) as run:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            for prediction in predict(checkpoint, batch, batch_size):
                answers.append(asdict(prediction))
            trace = run.trace
            records += [(sum(trace.visual_tokens(i)), trace, i) for i in range(len(trace.samples))]
            if on_batch is not None:
                on_batch(len(batch))
    architecture = architecture_of(checkpoint.model)
    width = WIDTHS.get(checkpoint.model.dtype, "float32")
    costs = _costs(records, architecture, method, width)
    middle = sorted(records, key=lambda record: record[0])[len(records) // 2]
    return {
        "answers": answers,
        "visual_per_layer": _mean([trace.visual_tokens(i) for _, trace, i in records]),
        "unreduced": _mean([[_unreduced(trace, i)] for _, trace, i in records])[0],
        **{name: _mean([[cost[name]] for cost in costs])[0] for name in costs[0]},
        "trace": asdict(Trace(middle[1].layers, [middle[1].samples[middle[2]]])),
    }


def _costs(
    records: Iterable[tuple[float, Trace, int]], architecture: ModelArchitecture, method: Pipeline, width: str
) -> list[dict[str, float]]:
    """FLOPs (convention `exact`) and KV bytes of each record; equal token counts are priced once.

    `flops` are the whole model's; `llm_flops` leave out vision tower and projector: what the method can change.
    """
    known: dict[tuple, dict[str, float]] = {}
    costs = []
    for _, trace, sample in records:
        sources = tuple((s.source, s.grids, s.projected, s.view_counts) for s in trace.samples[sample].sources)
        key = (tuple(trace.tokens(sample)), tuple(trace.visual_tokens(sample)), sources)
        if key not in known:
            cost = price_trace(trace, architecture, method, sample=sample, convention="exact", dtype=width)
            seen = cost.part("vision").flops + cost.part("projector").flops
            known[key] = {"flops": cost.flops, "llm_flops": cost.flops - seen, "kv_bytes": cost.kv_bytes}
        costs.append(known[key])
    return costs


def _unreduced(trace: Trace, sample: int) -> int:
    return sum(source.source.tokens for source in trace.samples[sample].sources)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def timing_cell(
    checkpoint: Checkpoint,
    methods: dict[str, Pipeline],
    question: Question,
    rounds: int,
    new_tokens: int,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Time all methods on one question, batch size 1, interleaved."""
    inputs = checkpoint.inputs([question])
    timed = time_methods(checkpoint.model, inputs, methods, rounds, new_tokens=new_tokens, on_round=on_round)
    return {name: asdict(found) for name, found in timed.items()}


def read_timing(result: dict[str, Any]) -> dict[str, Timed]:
    """What `timing_cell` returned, read back from the store."""
    return TypeAdapter(dict[str, Timed]).validate_python(result)


def read_trace(result: dict[str, Any]) -> Trace:
    """The trace that `accuracy_cell` recorded, read back from the store."""
    return TypeAdapter(Trace).validate_python(result["trace"])
