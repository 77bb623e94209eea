"""What a column of a comparison is, and which rows are best in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenzoo.comparison.rows import Row

Origin = Literal["measured", "computed"]


@dataclass(frozen=True)
class Column:
    """One column: its heading (and unit), how a row's cell reads, and the number it is ranked and exported by.

    `numbers` are the plain figures behind the cell, by the name they have in CSV. `better` says which way is better;
    None is not ranked.
    """

    title: str
    unit: str
    origin: Origin
    text: Callable[[Row], str]
    value: Callable[[Row], float | None]
    better: Literal["higher", "lower"] | None = None
    numbers: Callable[[Row], dict[str, float | None]] | None = None


def ranking(column: Column, rows: Sequence[Row]) -> dict[int, Literal["best", "second"]]:
    """The positions of the best and second best rows (ties share a place), the baseline `none` left out."""
    if column.better is None:
        return {}
    values = {
        index: round(value, 9)
        for index, row in enumerate(rows)
        if not row.is_baseline and row.status == "ok" and (value := column.value(row)) is not None and value == value
    }
    places = sorted(set(values.values()), reverse=column.better == "higher")[:2]
    if len(places) < 2:
        return {}
    names: tuple[Literal["best", "second"], ...] = ("best", "second")
    return {index: names[places.index(value)] for index, value in values.items() if value in places}
