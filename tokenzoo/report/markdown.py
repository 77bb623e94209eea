"""The comparison as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import COLUMN_GROUPS, benchmarks, quoted_cells
from tokenzoo.report.wording import DIFFERS, INTERVALS, RATIO, SPREAD, marks, remarks, slower, subtitle

MARKS = {"best": "**{}**", "second": "<u>{}</u>"}


def markdown(comparison: Comparison) -> str:
    """Every section as tables; headings name the origin of each column's numbers."""
    parts: list[str] = []
    for section in comparison.sections:
        parts += [f"## {section.title}", f"{subtitle(section)}. {section.terms}".strip()]
        parts += [rows_markdown(columns, section) for group in COLUMN_GROUPS if (columns := group(section))]
        if section.published:
            parts.append(quoted_markdown(section))
        said = [*slower(section), *remarks(section)]
        parts += ["\n".join(f"- {_escape(one)}" for one in said)] if said else []
    return "\n\n".join([*parts, _footer(comparison)]) + "\n"


def rows_markdown(columns: Sequence[Column], section: Section) -> str:
    """One table of these columns."""
    heads = [f"{column.title}<br>{column.unit}<br>*{column.origin}*" for column in columns]
    lines = [_line(["Method", *heads]), _line(["---", *("---:" for _ in columns)])]
    ranks = [ranking(column, section.rows, section.equal_cost) for column in columns]
    for index, row in enumerate(section.rows):
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


def _footer(comparison: Comparison) -> str:
    machine = comparison.environment
    return (
        f"Measured on {machine.get('machine', '?')}, {machine.get('threads', '?')} threads, torch {machine.get('torch', '?')},"
        f" transformers {machine.get('transformers', '?')}, {machine.get('dtype', '?')}, {machine.get('attention', '?')}"
        f" attention, with tokenzoo {machine.get('tokenzoo', '?')}. {marks(comparison, 'Bold', 'underlined')} {INTERVALS};"
        f" {DIFFERS}. {SPREAD}; {RATIO}; ! slower than none."
    ).replace("*", "\\*") + "".join(f" {note}" for note in comparison.notes)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
