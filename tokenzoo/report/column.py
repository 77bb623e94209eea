"""What a column of a comparison is, and which rows are best in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenzoo.comparison.rows import Row

Origin = Literal["measured", "computed"]
Rank = Literal["best", "second"]


@dataclass(frozen=True)
class Column:
    """One column: its heading (and unit), how a row's cell reads, and the number it is ranked and exported by.

    `numbers` are the plain figures behind the cell, by the name they have in CSV. `better` says which way is better; None is
    not ranked, as are all computed columns: they are what the budget set, and no finding.
    """

    title: str
    unit: str
    origin: Origin
    text: Callable[[Row], str]
    value: Callable[[Row], float | None]
    better: Literal["higher", "lower"] | None = None
    numbers: Callable[[Row], dict[str, float | None]] | None = None


def ranking(column: Column, rows: Sequence[Row], equal_cost: bool) -> dict[int, Rank]:
    """The positions of the best and second best rows of each budget, the baseline `none` left out.

    No row is the best where costs differ. What costs less than its budget cannot be the fastest for it, but the most accurate.
    Rows whose numbers read the same share a place.
    """
    if column.better is None or not equal_cost:
        return {}
    found: dict[int, Rank] = {}
    for budget in dict.fromkeys(row.budget for row in rows if not row.is_baseline):
        values = {
            index: value
            for index, row in enumerate(rows)
            if row.budget == budget and not row.is_baseline and row.status == "ok"
            and (row.at_budget or column.better == "higher")
            and (value := column.value(row)) is not None and value == value
        }  # fmt: skip
        order = sorted(values, key=lambda index: values[index], reverse=column.better == "higher")
        places = list(dict.fromkeys(_number(column.text(rows[index])) for index in order))
        if len(places) > 1:
            names: dict[str, Rank] = {places[0]: "best", places[1]: "second"}
            read = {index: _number(column.text(rows[index])) for index in order}
            found |= {index: names[text] for index, text in read.items() if text in names}
    return found


def _number(text: str) -> str:
    """A cell without its interval, spread and marks."""
    return re.split(r" \[|±", text)[0].rstrip("!*")
