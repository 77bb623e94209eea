"""The comparison as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from tokenzoo.comparison.rows import Comparison, Row, Section
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import COLUMN_GROUPS, benchmarks, quoted_cells
from tokenzoo.report.table import subtitle

MARKS = {"best": "**{}**", "second": "<u>{}</u>"}


def markdown(comparison: Comparison) -> str:
    """Every section as tables; headings name the origin of each column's numbers."""
    parts: list[str] = []
    for section in comparison.sections:
        parts += [f"## {section.title}", subtitle(section) + "."]
        for columns in (group(section) for group in COLUMN_GROUPS):
            if columns:
                parts.append(rows_markdown(columns, section.rows))
        if section.published:
            parts.append(quoted_markdown(section))
        parts += _notes(section)
    return "\n\n".join([*parts, _footer(comparison)]) + "\n"


def rows_markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """One table of these columns."""
    heads = [f"{column.title}<br>{column.unit}<br>*{column.origin}*" for column in columns]
    lines = [_line(["Method", *heads]), _line(["---", *("---:" for _ in columns)])]
    ranks = [ranking(column, rows) for column in columns]
    for index, row in enumerate(rows):
        if row.status != "ok":
            cells = [row.status, *("" for _ in columns[1:])]
        else:
            cells = [
                MARKS.get(rank.get(index, ""), "{}").format(_escape(column.text(row)))
                for column, rank in zip(columns, ranks, strict=True)
            ]
        lines.append(_line([f"`{row.label}`", *cells]))
    return "\n".join(lines)


def quoted_markdown(section: Section) -> str:
    """What papers printed for these methods."""
    names = benchmarks(section.published)
    lines = [_line(["Printed row<br>*quoted*", "Source", *names]), _line(["---", "---", *("---:" for _ in names)])]
    for row in section.published:
        lines.append(_line([f"{row.method}: {row.row} ({row.architecture})", row.source, *quoted_cells(row, names)]))
    return "\n".join(lines)


def _notes(section: Section) -> list[str]:
    said = [f"- `{row.label}`: {'' if row.status == 'ok' else row.status + ': '}{row.note}" for row in section.rows if row.note]
    return ["\n".join(said)] if said else []


def _footer(comparison: Comparison) -> str:
    machine = comparison.environment
    return (
        f"Measured on {machine.get('machine', '?')}, {machine.get('threads', '?')} threads, torch {machine.get('torch', '?')},"
        f" transformers {machine.get('transformers', '?')}, {machine.get('dtype', '?')}, {machine.get('attention', '?')}"
        f" attention, with tokenzoo {machine.get('tokenzoo', '?')}. Brackets: 95 % intervals (Wilson; for differences, Bonett"
        " and Price); * p < 0.05 (McNemar's exact test). ±: half the interquartile range over interleaved rounds; ! slower than"
        " none."
    ) + "".join(f" {note}" for note in comparison.notes)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
