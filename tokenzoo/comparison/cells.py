"""The cells of a comparison: what one method measures on one task, and one interleaved timing of several methods.

Each function runs the model and returns plain data that the store keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from pydantic import TypeAdapter

import tokenzoo
from tokenzoo.bench.evaluate import MAX_NEW_TOKENS, batches, predict
from tokenzoo.bench.timing import Timed, time_methods
from tokenzoo.cost import ModelArchitecture, architecture_of, price_trace, workload_of
from tokenzoo.errors import FailedError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.trace import Trace
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.question import Question

WIDTHS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def accuracy_part(
    checkpoint: Checkpoint,
    method: Pipeline,
    questions: Sequence[Question],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, Any]:
    """Answer some of a task's questions with the method at work: the answers, and the record of each question's run.

    `records` are the different ones, and `record_of` says which of them each question has.
    """
    answers: list[dict[str, Any]] = []
    checkpoint = checkpoint.scaled(method.picture_scale)
    recorder = Recorder(checkpoint, method)
    with tokenzoo.apply(checkpoint.model, method, **checkpoint.words(())) as run:
        for batch in batches(checkpoint, questions, batch_size):
            run.questions = [question.prompt for question in batch]
            answers += [asdict(prediction) for prediction in predict(checkpoint, batch, batch_size, max_new_tokens)]
            recorder.add(run.trace)
            if on_batch is not None:
                on_batch(len(batch))
    return {"answers": answers, **recorder.part()}


class Recorder:
    """Keeps what the traces of a method's runs say; runs with the same counts share one record."""

    def __init__(self, checkpoint: Checkpoint, method: Pipeline) -> None:
        self.method = method
        self.architecture = architecture_of(checkpoint.model)
        self.width = WIDTHS.get(checkpoint.model.dtype, "float32")
        self.records: list[Record] = []
        self.known: dict[tuple, Record] = {}

    def add(self, trace: Trace) -> None:
        """Record each sample of a batch's run, in order."""
        self.records += _records(trace, self.architecture, self.method, self.width, self.known)

    def part(self) -> dict[str, Any]:
        """The different records, and which of them each question has."""
        places = {id(record): place for place, record in enumerate(self.known.values())}
        return {
            "records": _records_type().dump_python(list(self.known.values())),
            "record_of": [places[id(record)] for record in self.records],
        }


def accuracy_cell(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cell that parts of a task make in their order, to the last digit the same however many they are.

    All counts are means over the questions. `trace` is a recorded run with the counts of the question in the middle (by
    visual tokens): data-dependent methods are priced on other architectures from it.
    """
    answers = [answer for part in parts for answer in part["answers"]]
    records = [part["records"][place] for part in parts for place in part["record_of"]]
    middle = sorted(records, key=lambda record: sum(record["visual"]))[len(records) // 2]
    # the first run with these counts: which of several equal ones a part has kept depends on where it was cut
    middle = next(record for record in records if _counts(record) == _counts(middle))
    return {
        "answers": answers,
        "visual_per_layer": _mean([record["visual"] for record in records]),
        "unreduced": _mean([[record["unreduced"]] for record in records])[0],
        **{name: _mean([[record["costs"][name]] for record in records])[0] for name in middle["costs"]},
        "trace": middle["trace"],
    }


def _counts(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["visual"], record["unreduced"], record["costs"]


@dataclass(frozen=True)
class Record:
    """What one question's run gave; runs with the same counts share one record, trace and price."""

    visual: list[int]
    unreduced: int
    costs: dict[str, float]
    trace: Trace


@cache
def _records_type() -> TypeAdapter[list[Record]]:
    return TypeAdapter(list[Record])


def _records(
    trace: Trace, architecture: ModelArchitecture, method: Pipeline, width: str, known: dict[tuple, Record]
) -> Iterator[Record]:
    """A record of each sample of a batch's run, in order; `costs` are FLOPs (convention `exact`) and KV bytes.

    `flops` are the whole model's; `llm_flops` leave out vision tower and projector: what the method can change.
    """
    for sample, recorded in enumerate(trace.samples):
        sources = tuple((s.source, s.grids, s.projected, s.view_counts) for s in recorded.sources)
        seen = (trace.tokens(sample), trace.visual_tokens(sample), trace.mlp_tokens(sample), trace.cache_tokens(sample))
        counts = (*map(tuple, seen), sources)
        if counts not in known:
            _check_schedule(method, trace, sample, architecture)
            cost = price_trace(trace, architecture, method, sample=sample, convention="exact", dtype=width)
            seen = cost.part("vision").flops + cost.part("projector").flops
            known[counts] = Record(
                visual=trace.visual_tokens(sample),
                unreduced=sum(source.source.tokens for source in recorded.sources),
                costs={"flops": cost.flops, "llm_flops": cost.flops - seen, "kv_bytes": cost.kv_bytes},
                trace=Trace(trace.layers, [recorded]),
            )
        yield known[counts]


def _check_schedule(method: Pipeline, trace: Trace, sample: int, architecture: ModelArchitecture) -> None:
    """Raise ContradictionError where a method's schedule says other counts than it left: its prices would be untrue."""
    if not method.fixed_schedule:
        return
    left = trace.visual_tokens(sample)
    try:
        promised = list(method.schedule(workload_of(trace.samples[sample], architecture.decoder, recorded=False)))
    except NotImplementedError:
        return  # no schedule, so no price: rows say that
    if len(promised) != len(left):
        raise ContradictionError(f"schedule() has {len(promised)} layers, the model {len(left)}")
    wrong = next((layer for layer, counts in enumerate(zip(promised, left, strict=True)) if counts[0] != counts[1]), None)
    if wrong is not None:
        raise ContradictionError(
            f"schedule() promises {promised[wrong]} tokens in layer {wrong}, {left[wrong]} were there: its prices are untrue"
        )


class ContradictionError(FailedError):
    """A method's schedule and what it did do not agree."""


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
    asked = {name: checkpoint.scaled(method.picture_scale) for name, method in methods.items()}
    inputs = {name: one.inputs([question]) for name, one in asked.items()}
    words = {name: one.words([question]) for name, one in asked.items()}
    timed = time_methods(checkpoint.model, inputs, methods, rounds, new_tokens=new_tokens, on_round=on_round, words=words)
    return {name: asdict(found) for name, found in timed.items()}


def read_timing(result: dict[str, Any]) -> dict[str, Timed]:
    """What `timing_cell` returned, read back from the store."""
    return TypeAdapter(dict[str, Timed]).validate_python(result)


def read_trace(result: dict[str, Any]) -> Trace:
    """The trace that `accuracy_cell` recorded, read back from the store."""
    return TypeAdapter(Trace).validate_python(result["trace"])
