"""What `tokenzoo compare --plan` says of benchmarks: a line for each method, GPU hours on each benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from tokenzoo.comparison.outlook import ANSWER_TOKENS, Outlook
from tokenzoo.numbers import MISSING, si


def outlook_rows(outlook: Outlook) -> tuple[list[str], list[list[str]]]:
    """A table's header and rows: GPU hours of each cell, and FLOPs and hours of each method."""
    tasks = list(dict.fromkeys(cell.task for cell in outlook.cells))
    questions = {cell.task: cell.questions for cell in outlook.cells}
    header = ["GPU hours", *(task.partition(":")[2] for task in tasks), "all", "FLOPs"]
    rows = [["questions", *(f"{questions[task]:,}" for task in tasks), f"{sum(questions.values()):,}", ""]]
    for method in dict.fromkeys(cell.method for cell in outlook.cells):
        cells = {cell.task: cell for cell in outlook.cells if cell.method == method}
        hours = [cells[task].gpu_hours for task in tasks]
        flops = [cells[task].flops for task in tasks]
        rows.append([method, *map(_hours, hours), _hours(_sum(hours)), MISSING if _sum(flops) is None else si(_sum(flops) or 0)])
    return header, rows


def outlook_lines(outlook: Outlook) -> Iterator[str]:
    """What stands below the table, in sentences."""
    if outlook.gpu_hours is not None:
        yield (
            f"{len(outlook.cells)} cells, {outlook.gpu_hours:.1f} GPU hours by the roofline of {outlook.hardware}: one question "
            f"at a time, prefill and {ANSWER_TOKENS} tokens, convention exact; real runs take several times that."
        )
    elif outlook.cells:
        yield f"{len(outlook.cells)} cells. Pass --price ARCH@GPU to see FLOPs and GPU hours."
    if outlook.downloads:
        yield f"To be downloaded where not there yet: {', '.join(outlook.downloads)}."
    yield from outlook.notes


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _hours(hours: float | None) -> str:
    return MISSING if hours is None else f"{hours:.2f}"
