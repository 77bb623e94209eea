"""The columns of a comparison, said once: every renderer (terminal, Markdown, LaTeX, CSV, HTML) reads them from here.

`origin` tells where a column's numbers come from: measured on this machine, or computed exactly. What papers printed are
rows of their own (`Quoted`), since they were run with other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from tokenzoo.comparison.rows import Quoted, Row, Section, TaskScore
from tokenzoo.comparison.statistics import Spread
from tokenzoo.numbers import MISSING, binary_bytes, percent, si
from tokenzoo.report.column import Column, Origin

#: Stands behind a ratio where a method is slower than `none`.
SLOWER = "!"
KV_TITLE = "KV cache"


def summary_columns(section: Section) -> list[Column]:
    """What fits into 100 characters: tokens, accuracy, its difference to `none`, time and FLOPs."""
    columns = [tokens_column()]
    if any(row.overall for row in section.rows):
        columns += [accuracy_column(), difference_column()]
    if any(row.timing for row in section.rows):
        columns += [prefill_column(), ratio_column(), method_column()]
    return [*columns, llm_flops_column()]


def task_columns(section: Section) -> list[Column]:
    """Accuracy on each task; a benchmark's own metric, on its own scale."""
    return [metric_column(task, metric) if (metric := _metric_of(section, task)) else task_column(task) for task in section.tasks]


def detail_columns(section: Section) -> list[Column]:
    """First token, decoding, memory, all FLOPs and KV cache."""
    columns: list[Column] = []
    if any(row.timing for row in section.rows):
        columns += [first_token_column(), decode_column(), decode_ratio_column(), peak_column()]
    return [*columns, flops_column(), kv_column()]


def price_columns(section: Section) -> list[Column]:
    """FLOPs, prefill time and KV cache on the architectures and GPUs that were asked for."""
    columns: list[Column] = []
    for target in {target: None for row in section.rows for target in row.prices}:
        columns += [price_flops_column(target), price_time_column(target), price_kv_column(target)]
    return columns


#: What stands together in one table where a line is 100 characters.
COLUMN_GROUPS = (summary_columns, task_columns, detail_columns, price_columns)


def all_columns(section: Section) -> list[Column]:
    """Every column, for wide output: measured ones first, then computed, then quoted."""
    columns = [column for group in COLUMN_GROUPS for column in group(section)]
    return sorted(columns, key=lambda column: ("measured", "computed").index(column.origin))


def paper_columns(section: Section) -> list[Column]:
    """What a paper's main table shows: tokens, accuracy on each task and on all, speed, FLOPs here and where they were priced."""
    columns = [tokens_column(), *(task_columns(section) if len(section.tasks) > 1 else [])]
    if any(row.overall for row in section.rows):
        columns += [accuracy_column(), difference_column()]
    if any(row.timing for row in section.rows):
        columns.append(ratio_column())
    prices = [column for column in price_columns(section) if column.unit != KV_TITLE]
    return [*columns, llm_flops_column(), *prices]


def appendix_columns(section: Section) -> list[Column]:
    """Every column that is not in a paper's main table."""
    shown = {(column.title, column.unit) for column in [*paper_columns(section), *task_columns(section)]}
    return [column for column in all_columns(section) if (column.title, column.unit) not in shown]


# --- the columns ----------------------------------------------------------------------------------------------------


def tokens_column() -> Column:
    def text(row: Row) -> str:
        if row.visual_tokens is None:
            return MISSING
        return f"{row.visual_tokens:.1f}" + (f" {percent(row.visual_share)}" if row.visual_share is not None else "")

    return Column(
        "Tokens", "mean/layer", "measured", text, lambda row: row.visual_tokens, None,
        lambda row: {"visual_tokens": row.visual_tokens, "visual_share": row.visual_share},
    )  # fmt: skip


def accuracy_column() -> Column:
    return _score_column("Accuracy", "% [95 %]", lambda row: row.overall, "accuracy", task=False)


def _metric_of(section: Section, task: str) -> str:
    return next((row.scores[task].metric for row in section.rows if task in row.scores), "")


def metric_column(task: str, metric: str) -> Column:
    """What lmms-eval computed, ± its bootstrap standard error; the star is of the paired test on single answers."""

    def value(row: Row) -> float | None:
        return row.scores[task].value if task in row.scores else None

    def text(row: Row) -> str:
        found = row.scores.get(task)
        if found is None or found.value is None:
            return MISSING
        star = "*" if found.difference and found.difference.significant else ""
        error = f"±{found.error:.2g}" if found.error is not None else ""
        return f"{found.value:.4g}{error}{star}"

    def numbers(row: Row) -> dict[str, float | None]:
        found = row.scores.get(task)
        values: dict[str, float | None] = {f"{task} {name}": one for name, one in (found.metrics if found else {}).items()}
        values[f"{task} {metric}_error"] = found.error if found else None
        return values | difference_numbers(found, f"{task}_difference")

    return Column(task, metric, "measured", text, value, "higher", numbers)


def task_column(task: str) -> Column:
    return _score_column(task, "% [95 %]", lambda row: row.scores.get(task), task, task=True)


def _score_column(title: str, unit: str, score: Callable[[Row], TaskScore | None], name: str, task: bool) -> Column:
    """A score with its interval; a task's also says whether it differs from `none` (all tasks' have a column for that)."""

    def text(row: Row) -> str:
        found = score(row)
        if found is None:
            return MISSING
        interval = found.accuracy
        star = "*" if task and found.difference and found.difference.significant else ""
        return f"{100 * interval.value:.1f} [{100 * interval.low:.0f} {100 * interval.high:.0f}]{star}"

    def value(row: Row) -> float | None:
        found = score(row)
        return found.accuracy.value if found else None

    def numbers(row: Row) -> dict[str, float | None]:
        found = score(row)
        if found is None:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_questions"))
        interval = found.accuracy
        values = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        values[f"{name}_questions"] = found.questions
        if found.f1 is not None:
            values[f"{name}_f1"] = found.f1
        return values | (difference_numbers(found, f"{name}_difference") if task else {})

    return Column(title, unit, "measured", text, value, "higher", numbers)


def difference_column() -> Column:
    def text(row: Row) -> str:
        difference = row.overall.difference if row.overall else None
        if difference is None:
            return MISSING
        star = "*" if difference.significant else ""
        return f"{100 * difference.value:+.1f} [{100 * difference.low:+.0f} {100 * difference.high:+.0f}]{star}"

    return Column(
        "Δ none", "points", "measured", text, lambda row: None, None, lambda row: difference_numbers(row.overall, "difference")
    )  # fmt: skip


def difference_numbers(score: TaskScore | None, name: str) -> dict[str, float | None]:
    """The paired difference to `none` as plain figures; empty where there is none."""
    found = score.difference if score else None
    parts = ("value", "low", "high", "p_value")
    return {f"{name}_{part}": getattr(found, part) if found else None for part in parts}


def _timed(name: str) -> Callable[[Row], Spread | None]:
    """One of the spreads of a row's timing, where it was timed."""
    return lambda row: getattr(row.timing, name) if row.timing else None


def _spread_column(
    title: str,
    unit: str,
    name: str,
    get: Callable[[Row], Spread | None],
    digits: int,
    better: Literal["lower"] | None = "lower",
) -> Column:
    def text(row: Row) -> str:
        spread = get(row)
        if spread is None or not spread.rounds:
            return MISSING
        half = (spread.high - spread.low) / 2
        return f"{spread.median:.{digits}f}±{half:.{digits}f}"

    def value(row: Row) -> float | None:
        spread = get(row)
        return spread.median if spread else None

    def numbers(row: Row) -> dict[str, float | None]:
        spread = get(row)
        names = (name, f"{name}_q1", f"{name}_q3")
        return dict(zip(names, (spread.median, spread.low, spread.high) if spread else (None,) * 3, strict=True))

    return Column(title, unit, "measured", text, value, better, numbers)


def prefill_column() -> Column:
    return _spread_column("Prefill", "ms", "prefill_ms", _timed("prefill_ms"), 1)


def first_token_column() -> Column:
    return _spread_column("First token", "ms", "first_token_ms", _timed("first_token_ms"), 1)


def decode_column() -> Column:
    return _spread_column("Decode", "ms/token", "decode_ms", _timed("decode_ms"), 2)


def method_column() -> Column:
    return _spread_column("Own", "ms", "method_ms", _timed("method_ms"), 1, None)


def _ratio_column(title: str, name: str, get: Callable[[Row], Spread | None], flag: bool) -> Column:
    def text(row: Row) -> str:
        ratio = get(row)
        if ratio is None:
            return MISSING
        slower = flag and row.timing is not None and row.timing.slower and not row.is_baseline
        return f"{ratio.median:.2f}" + (SLOWER if slower else "")

    def value(row: Row) -> float | None:
        ratio = get(row)
        return ratio.median if ratio else None

    better: Literal["lower"] | None = "lower" if flag else None
    return Column(title, "× none", "measured", text, value, better, lambda row: {name: value(row)})


def ratio_column() -> Column:
    return _ratio_column("Prefill", "prefill_ratio", _timed("prefill_ratio"), True)


def decode_ratio_column() -> Column:
    return _ratio_column("Decode", "decode_ratio", _timed("decode_ratio"), False)


def _number_column(
    title: str, unit: str, origin: Origin, name: str, get: Callable[[Row], float | None], show: Callable[[float], str]
) -> Column:
    def text(row: Row) -> str:
        value = get(row)
        return MISSING if value is None else show(value)

    better: Literal["lower"] | None = "lower" if origin == "measured" else None
    return Column(title, unit, origin, text, get, better, lambda row: {name: get(row)})


def peak_column() -> Column:
    return _number_column(
        "Peak memory", "above weights", "measured", "peak_bytes",
        lambda row: row.timing.peak_bytes if row.timing else None, binary_bytes,
    )  # fmt: skip


def kv_column() -> Column:
    return _number_column(KV_TITLE, "prompt", "computed", "kv_bytes", lambda row: row.kv_bytes, binary_bytes)


def llm_flops_column() -> Column:
    def text(row: Row) -> str:
        if row.llm_flops is None:
            return MISSING
        return si(row.llm_flops) + (f" {percent(row.llm_share)}" if row.llm_share is not None else "")

    return Column(
        "LLM FLOPs", "+ own", "computed", text, lambda row: row.llm_flops, None,
        lambda row: {"llm_flops": row.llm_flops, "llm_share": row.llm_share},
    )  # fmt: skip


def flops_column() -> Column:
    return _number_column("All FLOPs", "exact", "computed", "flops", lambda row: row.flops, si)


def price_flops_column(target: str) -> Column:
    def get(row: Row) -> float | None:
        return row.prices[target].tflops if target in row.prices else None

    return _number_column(target, "TFLOPs", "computed", f"{target} tflops", get, lambda value: f"{value:.2f}")


def price_time_column(target: str) -> Column:
    def get(row: Row) -> float | None:
        return row.prices[target].prefill_ms if target in row.prices else None

    return _number_column(target, "prefill ms", "computed", f"{target} prefill_ms", get, lambda value: f"{value:.2f}")


def price_kv_column(target: str) -> Column:
    def get(row: Row) -> float | None:
        return row.prices[target].kv_bytes if target in row.prices else None

    return _number_column(target, KV_TITLE, "computed", f"{target} kv_bytes", get, binary_bytes)


def benchmarks(quoted: Sequence[Quoted]) -> list[str]:
    """The benchmarks that quoted rows report, in order of appearance."""
    return list(dict.fromkeys(name for row in quoted for name in row.accuracy))


def quoted_cells(row: Quoted, names: Sequence[str]) -> list[str]:
    """A quoted row's accuracies on these benchmarks as text."""
    return [f"{row.accuracy[name]:.1f}" if name in row.accuracy else MISSING for name in names]
