"""A paper's printed accuracies beside those that the store has of the same method on the same benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenzoo.comparison.store import Store
from tokenzoo.lmms.known import PREFIX, known_benchmarks
from tokenzoo.zoo.plugins import Zoo


@dataclass(frozen=True)
class Reproduced:
    """A printed number and the measured one on the printed scale, with its standard error where there is one."""

    table: str
    row: str
    method: str
    benchmark: str
    printed: float
    measured: float
    error: float | None
    questions: int
    model: str


def reproduced(rows: Sequence[Any], zoo: Zoo, store: Store) -> list[Reproduced]:
    """What the store has of each printed row, the newest cell of each model.

    Printed rows of checkpoints that no method here was run on (LongVA, Qwen-VL-Chat) are left out.
    """
    ours = {
        (entry["table"], entry["row"])
        for method in zoo.registry.methods.values()
        for entry in method.published
        if {"table", "row", "model"} <= entry.keys()
    }
    kept = [row for row in rows if (row.table, row.name) in ours]
    return [one for row in kept for one in _of_row(row, str(zoo.build(row.method)), store)]


def _of_row(row: Any, method: str, store: Store) -> Iterator[Reproduced]:
    for name, known in known_benchmarks().items():
        if known.printed not in row.accuracy:
            continue
        newest = {
            cell.model: cell
            for cell in store.cells(kind="accuracy", task=PREFIX + name)
            if cell.task == PREFIX + name and cell.method == method
        }
        for model, cell in newest.items():
            shown = cell.result["metrics"].get(known.metric)
            if shown is not None:
                error = None if shown["error"] is None else known.scale * shown["error"]
                yield Reproduced(
                    row.table, row.name, row.method, known.printed, float(row.accuracy[known.printed]),
                    known.scale * shown["value"], error, len(cell.result["answers"]), model,
                )  # fmt: skip
