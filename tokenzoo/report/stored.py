"""The cells of a result store as a table, CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from rich.text import Text

from tokenzoo.comparison.statistics import spread, wilson
from tokenzoo.comparison.store import Cell
from tokenzoo.numbers import si
from tokenzoo.report.delimited import csv_text
from tokenzoo.report.grid import Head, grid

#: Left out of the table on the terminal; CSV has them.
HIDDEN = ("low", "high", "seed", "tokenzoo", "torch", "transformers", "rounds", "machine")


def lines_of(cell: Cell) -> list[dict[str, Any]]:
    """A cell as flat lines: one for accuracy, one per method for a timing."""
    finished = datetime.fromtimestamp(cell.finished, timezone.utc).strftime("%Y-%m-%d %H:%M")
    line: dict[str, Any] = {"finished (UTC)": finished, "model": cell.model, "method": cell.method, "task": cell.task}
    versions = cell.identity.get("versions", {})
    if cell.kind == "accuracy":
        right = sum(answer["correct"] for answer in cell.result["answers"])
        accuracy = wilson(right, len(cell.result["answers"]))
        counts = cell.result["visual_per_layer"]
        line |= {
            "seed": cell.seed, "questions": len(cell.result["answers"]), "accuracy": accuracy.value,
            "low": accuracy.low, "high": accuracy.high, "tokens": sum(counts) / len(counts),
            "llm_flops": cell.result["llm_flops"],
        }  # fmt: skip
        return [line | versions]
    lines = []
    for label, timed in cell.result.items():
        values = {
            name: spread([one[name] for one in timed["rounds"]]).median
            for name in ("prefill_ms", "first_token_ms", "decode_ms", "method_ms")
        }
        machine = cell.identity.get("environment", {}).get("machine", "")
        lines.append(line | {"method": label, **values, "rounds": len(timed["rounds"]), "machine": machine} | versions)
    return lines


def cells_table(cells: Sequence[Cell], width: int) -> Text:
    """A table for the terminal, one line per cell and method, the method first."""
    lines = [line for cell in cells for line in lines_of(cell)]
    first = lines[0] if lines else {}
    names = ["method", *(name for name in first if name not in ("method", *HIDDEN))] if lines else []
    heads = [Head((name,), text=isinstance(first[name], str)) for name in names]
    return grid(heads, [[_text(name, line) for name in names] for line in lines], width)


def _text(name: str, line: dict[str, Any]) -> str:
    value = line[name]
    if name == "accuracy":
        return f"{100 * value:.1f} [{100 * line['low']:.0f} {100 * line['high']:.0f}]"
    if name == "llm_flops":
        return si(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def cells_csv(cells: Sequence[Cell]) -> str:
    """One line per cell and method."""
    return csv_text([line for cell in cells for line in lines_of(cell)])


def cells_json(cells: Sequence[Cell]) -> str:
    """Everything that is stored, every answer included."""
    return json.dumps([asdict(cell) for cell in cells], indent=1, ensure_ascii=False) + "\n"
