"""Plain data as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any


def csv_text(lines: Sequence[dict[str, Any]]) -> str:
    """One line for each mapping, below all their names in order of appearance; what a mapping lacks stays empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in lines for name in line)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _flat(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _flat(value: Any) -> Any:
    """A value as one cell: a list of plain ones with spaces, other structures as JSON."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) if all(not isinstance(item, dict) for item in value) else json.dumps(value)
    return json.dumps(value) if isinstance(value, dict) else value
