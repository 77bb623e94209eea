"""Recompute a paper's efficiency tables from the methods' own schedules, and compare with what it printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import yaml

from tokenzoo.cost.architecture import ModelArchitecture, from_entry
from tokenzoo.cost.costs import Cost
from tokenzoo.cost.pricing import price
from tokenzoo.errors import UserError, unknown
from tokenzoo.method.workload import Workload

TABLES = Path(__file__).parent / "tables"
#: agrees: to the printed digits; rounded twice: only when rounded to one more digit first; differs: neither.
Verdict = Literal["agrees", "rounded twice", "differs"]


@dataclass(frozen=True)
class Cell:
    """A printed number and its recomputation in the same unit."""

    printed: str
    computed: float

    @property
    def digits(self) -> int:
        """Decimals printed."""
        return len(self.printed.partition(".")[2])

    @property
    def difference(self) -> float:
        return self.computed - float(self.printed)

    @property
    def verdict(self) -> Verdict:
        if round_half_up(self.computed, self.digits) == self.printed:
            return "agrees"
        once = round_half_up(self.computed, self.digits + 1)
        return "rounded twice" if round_half_up(once, self.digits) == self.printed else "differs"


@dataclass(frozen=True)
class PublishedRow:
    """One printed row with what is needed to recompute it; `visual_tokens` is the stored schedule, for tests."""

    table: str
    name: str
    method: str
    model: ModelArchitecture
    workload: Workload
    tflops: str
    prefill_ms: str
    visual_tokens: tuple[int, ...]
    note: str
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Recomputed:
    """A printed row next to its recomputation."""

    row: PublishedRow
    method: str
    cost: Cost
    tflops: Cell
    prefill_ms: Cell

    @property
    def cells(self) -> tuple[Cell, Cell]:
        return self.tflops, self.prefill_ms


@dataclass(frozen=True)
class Paper:
    """A paper's tables as stored in `tables/`."""

    name: str
    title: str
    source: str
    convention: str
    hardware: str
    dtype: str
    rows: tuple[PublishedRow, ...]
    extras: dict[str, dict[str, Any]]

    @property
    def tables(self) -> list[str]:
        return list(dict.fromkeys(row.table for row in self.rows))


def papers() -> list[str]:
    """The papers whose tables can be recomputed, as they are named on the command line."""
    return sorted(path.stem.replace("_", "-") for path in TABLES.glob("*.yaml"))


def load_paper(name: str) -> Paper:
    """Return a paper's tables; raises UserError with a suggestion where there is none of that name."""
    if name not in papers():
        raise unknown("paper", name, papers(), "tokenzoo reproduce --help")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data = yaml.load((TABLES / f"{name.replace('-', '_')}.yaml").read_text(encoding="utf-8"), loader)
    models = {key: _model(key, entry) for key, entry in data["architectures"].items()}
    rows = [
        _row(table, entry, models[entry["arch"]])
        for table, entries in data["tables"].items()
        if isinstance(entries, list)
        for entry in entries
    ]
    extras = {table: entries for table, entries in data["tables"].items() if isinstance(entries, dict)}
    about = {key: str(data[key]) for key in ("title", "source", "convention", "hardware", "dtype")}
    return Paper(name=name, rows=tuple(rows), extras=extras, **about)


def select(paper: Paper, tables: Sequence[str]) -> list[PublishedRow]:
    """The rows of these tables (none named: all); raises UserError for a table the paper does not have."""
    for table in tables:
        if table not in paper.tables:
            raise unknown(f"table of {paper.name}", table, paper.tables, f"tokenzoo reproduce {paper.name}")
    return [row for row in paper.rows if not tables or row.table in tables]


def recompute(paper: Paper, row: PublishedRow, reducer: Any) -> Recomputed:
    """Price `reducer`'s own schedule on the row's workload, under the paper's convention and GPU."""
    cost = price(row.model, row.workload, reducer, convention=paper.convention, hardware=paper.hardware, dtype=paper.dtype)
    if cost.seconds is None:
        raise UserError(f"Convention '{paper.convention}' gives no time. Choose llm-viewer or exact.")
    return Recomputed(
        row=row,
        method=row.method,
        cost=cost,
        tflops=Cell(row.tflops, cost.flops / 1e12),
        prefill_ms=Cell(row.prefill_ms, cost.seconds * 1e3),
    )


def as_released(reducer: Any) -> Any | None:
    """AIM's rows price pruning one layer earlier than the released model does it; the reducer as released, or None."""
    parts = getattr(reducer, "reducers", (reducer,))
    if not any(getattr(part, "prune_before", False) for part in parts):
        return None
    from tokenzoo.method.pipeline import Pipeline

    return Pipeline(tuple(part.replace(prune_before=False) if getattr(part, "prune_before", False) else part for part in parts))


def run_lengths(tokens: Sequence[int]) -> str:
    """A schedule in short: `1568×14 1372 1176 … 0×7`."""
    runs = [(value, len(list(run))) for value, run in groupby(tokens)]
    return " ".join(f"{value}×{length}" if length > 1 else str(value) for value, length in runs)


def round_half_up(value: float | str, digits: int) -> str:
    """`value` rounded to `digits` decimals, halves away from zero."""
    return str(Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _model(name: str, entry: dict[str, Any]) -> ModelArchitecture:
    decoder = {key: value for key, value in entry.items() if key != "skip_mlp_add"}
    return from_entry(name, {"decoder": decoder, "skip_mlp_add": entry.get("skip_mlp_add", False)})


def _row(table: str, entry: dict[str, Any], model: ModelArchitecture) -> PublishedRow:
    shape, text = entry["workload"], entry["text_tokens"]
    if "frames" in shape:
        workload = Workload.video(model.decoder, shape["frames"], shape["tokens"], text, shape.get("encoder_tokens", 0))
    else:
        workload = model.image_workload(shape["images"], shape["tokens"], text)
    return PublishedRow(
        table=table,
        name=entry["row"],
        method=entry["method"],
        model=model,
        workload=workload,
        tflops=entry["printed"]["tflops"],
        prefill_ms=entry["printed"]["prefill_ms"],
        visual_tokens=tuple(tokens for tokens, layers in entry["visual_tokens"] for _ in range(layers)),
        note=entry.get("note", ""),
        accuracy=entry.get("accuracy", {}),
    )
