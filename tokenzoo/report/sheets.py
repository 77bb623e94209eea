"""A table of costs and its forms: terminal, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenzoo.errors import unknown

FORMATS = ("table", "md", "latex", "csv", "json")
#: Columns of a page that no terminal limits.
WIDTH = 200


@dataclass
class Sheet:
    """A titled table. `rows` hold the cells as they are shown, `data` the plain numbers behind them (CSV, JSON);
    `left` are the columns of text, aligned left; `notes` stand below."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: frozenset[int] = frozenset({0})

    def add(self, cells: Sequence[str], **data: Any) -> None:
        """Add a row: its shown cells and the numbers behind them."""
        self.rows.append([str(cell) for cell in cells])
        self.data.append(data)


def show(sheets: Sequence[Sheet], form: str) -> str | None:
    """Return the sheets as text, or print them for "table"; raises UserError for an unknown format."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS, "tokenzoo cost --help")
    if form == "table":
        _print(sheets)
        return None
    return {"md": _markdown, "latex": _latex, "csv": _csv, "json": _json}[form](sheets)


def _print(sheets: Sequence[Sheet]) -> None:
    from rich.text import Text

    from tokenzoo.report.grid import Head, grid
    from tokenzoo.report.terminal import console
    from tokenzoo.text import printable

    out = console(WIDTH)
    for sheet in sheets:
        out.print(Text(printable(sheet.title), style="bold"))
        heads = [
            Head((title,), text=True) if index in sheet.left else Head.over(title, [row[index] for row in sheet.rows])
            for index, title in enumerate(sheet.columns)
        ]
        out.print(grid(heads, sheet.rows, out.width))
        for note in sheet.notes:
            out.print(Text(printable(note), style="dim"))
        out.print()


def _markdown(sheets: Sequence[Sheet]) -> str:
    parts = []
    for sheet in sheets:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in sheet.rows]
        notes = "\n".join(f"- {note}" for note in sheet.notes)
        parts.append(f"### {sheet.title}\n\n{_tabulated(sheet, rows, 'pipe')}" + (f"\n\n{notes}" if notes else ""))
    return "\n\n".join(parts) + "\n"


def _latex(sheets: Sequence[Sheet]) -> str:
    from tokenzoo.report.latex import ABOVE, FIT, SYMBOLS, escape, label

    parts = []
    for sheet in sheets:
        caption = rf"\caption{{{escape(sheet.title)}}}"
        head = [r"\begin{table}[t]", r"\centering", ABOVE, caption, rf"\label{{{label(sheet.title)}}}"]
        rows = [[re.sub(r"^-(?=\d)", "−", cell) for cell in row] for row in sheet.rows]
        body = _tabulated(sheet, rows, "latex_booktabs").translate(SYMBOLS)
        below = [rf"\par\smallskip\parbox{{\textwidth}}{{\footnotesize {escape(note)}}}" for note in sheet.notes]
        parts.append("\n".join([*head, FIT, f"{body}}}", *below, r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def _tabulated(sheet: Sheet, rows: Sequence[Sequence[str]], form: str) -> str:
    from tabulate import tabulate

    aligned = ["left" if index in sheet.left else "right" for index in range(len(sheet.columns))]
    return tabulate(rows, sheet.columns, tablefmt=form, colalign=aligned if rows else None, disable_numparse=True)


def _csv(sheets: Sequence[Sheet]) -> str:
    from tokenzoo.report.delimited import csv_text

    return csv_text([row for sheet in sheets for row in sheet.data])


def _json(sheets: Sequence[Sheet]) -> str:
    data = [{"title": sheet.title, "rows": sheet.data, "notes": sheet.notes} for sheet in sheets]
    return json.dumps(data[0] if len(data) == 1 else data, indent=2, ensure_ascii=False) + "\n"
