"""The comparison as data: CSV with a line per row, JSON with everything."""

from __future__ import annotations

import json
import math
from typing import Any

from tokenzoo.comparison.rows import Comparison
from tokenzoo.report.columns import all_columns
from tokenzoo.report.delimited import csv_text


def comparison_csv(comparison: Comparison) -> str:
    """One line per row, full precision, units in the names; sections that lack a column leave it empty."""
    lines: list[dict[str, Any]] = []
    for section in comparison.sections:
        for row in section.rows:
            line: dict[str, Any] = {"model": section.model, "input": section.kind, "method": row.method, "label": row.label}
            line |= {"status": row.status, "note": row.note, "budget": row.budget, "at_budget": row.at_budget}
            for column in all_columns(section):
                line |= column.numbers(row) if column.numbers else {}
            lines.append(line)
        for quoted in section.published:
            line = {"model": quoted.architecture, "input": section.kind, "method": quoted.method, "label": quoted.row}
            accuracy = {f"published {name}": value for name, value in quoted.accuracy.items()}
            lines.append(line | {"status": "quoted", "note": quoted.source} | accuracy)
    return csv_text(lines)


def comparison_json(comparison: Comparison) -> str:
    """Everything, as strict JSON: what is not a number is null."""
    return json.dumps(_strict(comparison.as_dict()), indent=1, ensure_ascii=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
