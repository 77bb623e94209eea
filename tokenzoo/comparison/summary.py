"""From finished cells to rows: intervals, paired differences, shares of `none`, prices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenzoo.bench.task import Prediction, Task, is_yes_no
from tokenzoo.bench.task import score as plain_score
from tokenzoo.bench.timing import Round, Timed
from tokenzoo.comparison import cells
from tokenzoo.comparison.candidates import Candidate
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.rows import Quoted, Row, TaskScore, Timing
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.statistics import Difference, Interval, paired_difference, spread
from tokenzoo.errors import UserError
from tokenzoo.numbers import percent
from tokenzoo.zoo.plugins import Zoo


@dataclass
class Measured:
    """A candidate with its finished cells, by task, and its timing."""

    candidate: Candidate
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    timed: Timed | None = None

    def predictions(self, task: str) -> list[Prediction]:
        return [Prediction(**answer) for answer in self.cells[task]["answers"]]


def rows_of(measured: Sequence[Measured], kind: str, targets: Sequence[Target]) -> list[Row]:
    """One row for each candidate, in their order; `none` is what the others are compared with."""
    none = next((one for one in measured if one.candidate.method is not None and one.candidate.method.name == "none"), None)
    rows = []
    for one in measured:
        row = Row(one.candidate.name, one.candidate.label, one.candidate.status, one.candidate.note)
        row.budget, row.at_budget = one.candidate.budget, one.candidate.at_budget
        if one.candidate.method is not None:
            row.specification = str(one.candidate.method)
            row.parameters = {reducer.name: reducer.parameters for reducer in one.candidate.method.reducers}
        if row.status == "ok":
            _accuracy(row, one, none if one is not none else None)
            _counts(row, one, none)
            if one.timed is not None:
                row.timing = _timing(one.timed, none.timed if none else None)
            _prices(row, one, kind, targets)
        rows.append(row)
    return rows


def _accuracy(row: Row, one: Measured, none: Measured | None) -> None:
    pooled: list[Prediction] = []
    reference: list[Prediction] = []
    for task in one.cells:
        mine = one.predictions(task)
        theirs = none.predictions(task) if none is not None and task in none.cells else []
        row.scores[task] = with_metrics(task_score(task, mine, theirs), one.cells[task])
        if one.cells[task].get("scored", True):
            pooled += mine
            reference += theirs
    if len(reference) not in (0, len(pooled)):
        reference = []
    row.overall = task_score("all", pooled, reference) if pooled else None


def with_metrics(score: TaskScore, cell: dict[str, Any]) -> TaskScore:
    """The score with a benchmark's own metrics; without accuracy where the benchmark does not score single answers."""
    if "metric" not in cell:
        return score
    if not cell["scored"]:
        nothing = float("nan")
        score = replace(score, right=0, accuracy=Interval(nothing, nothing, nothing), difference=None)
    shown = cell["metrics"].get(cell["metric"], {})
    return replace(
        score,
        metric=cell["metric"],
        value=shown.get("value"),
        error=shown.get("error"),
        metrics={name: one["value"] for name, one in cell["metrics"].items()},
    )


def task_score(task: str, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> TaskScore:
    """Score answers, and compare them with a reference's answers to the same questions (empty: with none)."""
    scored = plain_score(predictions, f1=is_yes_no(predictions))
    difference: Difference | None = None
    if reference:
        difference = paired_difference([one.value for one in predictions], [one.value for one in reference])
    return TaskScore(
        task=task,
        right=sum(prediction.correct for prediction in predictions),
        questions=len(predictions),
        accuracy=Interval(scored.accuracy, scored.low, scored.high),
        difference=difference,
        f1=scored.f1,
    )


def _counts(row: Row, one: Measured, none: Measured | None) -> None:
    """Tokens, FLOPs and KV bytes: means over all questions of all tasks."""
    row.tokens_per_layer = [
        sum(column) / sum(_weights(one)) for column in zip(*(_weighted(one, "visual_per_layer")), strict=True)
    ]
    row.visual_tokens = sum(row.tokens_per_layer) / len(row.tokens_per_layer)
    row.visual_share = row.visual_tokens / _total(none or one, "unreduced")
    row.flops, row.llm_flops, row.kv_bytes = (_total(one, name) for name in ("flops", "llm_flops", "kv_bytes"))
    if none is not None and none.cells.keys() >= one.cells.keys():
        row.llm_share = row.llm_flops / _total(none, "llm_flops")


def _weights(one: Measured) -> list[int]:
    return [len(cell["answers"]) for cell in one.cells.values()]


def _weighted(one: Measured, name: str) -> list[list[float]]:
    return [[weight * value for value in cell[name]] for weight, cell in zip(_weights(one), one.cells.values(), strict=True)]


def _total(one: Measured, name: str) -> float:
    weights = _weights(one)
    values = [cell[name] for cell in one.cells.values()]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _timing(timed: Timed, none: Timed | None) -> Timing:
    def of(name: str, rounds: Sequence[Round] = timed.rounds) -> list[float]:
        return [getattr(one, name) for one in rounds]

    def ratio(name: str) -> Any:
        if none is None or len(none.rounds) != len(timed.rounds):
            return None
        return spread([mine / theirs for mine, theirs in zip(of(name), of(name, none.rounds), strict=True)])

    return Timing(
        prefill_ms=spread(of("prefill_ms")),
        first_token_ms=spread(of("first_token_ms")),
        decode_ms=spread(of("decode_ms")),
        method_ms=spread(of("method_ms")),
        prefill_ratio=ratio("prefill_ms"),
        decode_ratio=ratio("decode_ms"),
        peak_bytes=timed.peak_bytes,
    )


def _prices(row: Row, one: Measured, kind: str, targets: Sequence[Target]) -> None:
    """Prices where the architecture can be priced; why not goes into the row's note."""
    if not one.cells:
        return
    trace = cells.read_trace(next(iter(one.cells.values())))
    for target in targets:
        if not target.takes(kind):
            continue
        try:
            row.prices[target.text] = target.price(kind, one.candidate.pipeline, trace)
        except UserError as error:
            row.note = f"{row.note} No price on {target.text}: {error}".strip()
        except NotImplementedError:
            row.note = f"{row.note} No price on {target.text}: '{row.method}' has no schedule().".strip()


def terms_of(settings: Settings, rows: Sequence[Row]) -> tuple[str, bool]:
    """What to say above the rows of their costs, in one line, and whether all keep to one budget."""
    reduced = [row for row in rows if row.status == "ok" and not row.is_baseline]
    if settings.amounts:
        shares = [amount.described for amount in settings.amounts]
        off = [row.label for row in reduced if not row.at_budget]
        but = f"; cheaper: {', '.join(off)}" if off else ""
        return f"Equal terms: every method set to at most {', '.join(shares)}{but}.", True
    costs = sorted((row.llm_share, row.label) for row in reduced if row.llm_share is not None)
    if not costs:
        return "", False
    (low, cheapest), (high, dearest) = costs[0], costs[-1]
    why = "each method at its own settings" if settings.as_published else "equal shares of tokens are no equal costs"
    return f"Costs differ ({why}): from {percent(low)} ({cheapest}) to {percent(high)} ({dearest}) of the LLM's FLOPs.", False


def warnings_of(tasks: Sequence[Task], measured: Sequence[Measured], rows: Sequence[Row]) -> list[str]:
    """What makes accuracies mean less than they seem: `none` at chance, choices that had to be answered in free form."""
    warnings = []
    none = next((row for row in rows if row.is_baseline), None)
    for task in tasks:
        score = none.scores.get(task.name) if none is not None else None
        if score is not None and score.accuracy.low <= task.chance:
            said = f"'none' answers '{task.name}' no better than chance ({percent(score.accuracy.value)}"
            warnings.append(f"{said}, chance {percent(task.chance)}): differences between methods mean little there.")
        cell = next((one.cells[task.name] for one in measured if task.name in one.cells), None)
        asked_here = cell is not None and "metric" not in cell
        chosen = [answer["chosen"] for answer in cell["answers"]] if cell and asked_here else []
        if chosen and not all(chosen):
            how = "all questions" if not any(chosen) else f"{len(chosen) - sum(chosen)} of {len(chosen)} questions"
            warnings.append(
                f"'{task.name}': {how} answered in free form (no choices, or choices that share their first token), "
                f"right where the text is the same."
            )
    return warnings


def published_of(zoo: Zoo, methods: Iterable[str], kind: str) -> list[Quoted]:
    """What papers printed for these methods on images or videos, from the registry.

    An entry says so with `kind`; without it, the table's name tells (retention sweeps and the like are left out).
    """
    found = []
    for method in dict.fromkeys(methods):
        entry = zoo.registry.methods.get(method)
        for result in entry.published if entry else []:
            if result.get("kind", str(result.get("table", "")).split("_")[0]) == kind:
                source = ", ".join(str(result[key]) for key in ("source", "table") if key in result)
                found.append(
                    Quoted(
                        method, str(result.get("row", method)), source, str(result.get("architecture", "")),
                        dict(result.get("accuracy", {})),
                    )
                )  # fmt: skip
    return found
