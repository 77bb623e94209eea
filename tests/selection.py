"""Which of the tests that cross two lists belong to the ordinary selection; the marker `matrix` selects the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def crossed(rows: Sequence[str], columns: Sequence[Any], every: int, first: int = 0) -> list[Any]:
    """Each of `rows` with each of `columns`. One column in `every` is ordinary, the next row has another; `first` moves them."""
    params = []
    for number, row in enumerate(rows):
        for place, column in enumerate(columns):
            marks = () if (number + place) % every == first else pytest.mark.matrix
            name = column if isinstance(column, str) else " ".join(column)
            params.append(pytest.param(row, column, marks=marks, id=f"{row}-{name}"))
    return params
