"""The comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import COLUMN_GROUPS, SLOWER, benchmarks, quoted_cells
from tokenzoo.report.grid import Head, grid
from tokenzoo.report.wording import DIFFERS, INTERVALS, RATIO, SPREAD, marks, remarks, slower, subtitle

COLORS = {"measured": "green", "computed": "cyan", "quoted": "magenta"}
STYLES = {"best": "bold", "second": "underline"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every section's tables, then what they were measured on and how to read them."""
    for section in comparison.sections:
        console.print(section_tables(section, console.width))
    console.print(footer(comparison))


def section_tables(section: Section, width: int) -> RenderableType:
    """One model's tables: the summary, the tasks, the details."""
    parts: list[RenderableType] = [Text(f"\n{section.title}", style="bold"), Text(subtitle(section), style="dim")]
    parts += [Text(section.terms)] if section.terms else []
    parts += [rows_table(columns, section, width) for group in COLUMN_GROUPS if (columns := group(section))]
    if section.published:
        parts.append(quoted_table(section, width))
    parts += [Text(f"{SLOWER} {said}", style="red") for said in slower(section)]
    failed = sum(row.status != "ok" for row in section.rows)
    parts += [Text(said, style="red" if index < failed else "dim") for index, said in enumerate(remarks(section))]
    return Group(*parts)


def rows_table(columns: Sequence[Column], section: Section, width: int) -> Text:
    """A table of these columns; a failed row keeps its line."""
    heads = [Head(("Method",), text=True)]
    heads += [Head((column.title, column.unit, Text(column.origin, COLORS[column.origin]))) for column in columns]
    ranks = [ranking(column, section.rows, section.equal_cost) for column in columns]
    lines: list[list[str | Text]] = []
    for index, row in enumerate(section.rows):
        if row.status == "ok":
            cells = [
                Text(column.text(row), style=STYLES.get(rank.get(index, ""), ""))
                for column, rank in zip(columns, ranks, strict=True)
            ]
        else:
            cells = [Text(row.status if not place else "", style="red") for place in range(len(columns))]
        lines.append([row.label, *cells])
    return grid(heads, lines, width, gap=1)


def quoted_table(section: Section, width: int) -> Text:
    """What papers printed for these methods."""
    names = benchmarks(section.published)
    heads = [Head(("Printed row", Text("quoted", COLORS["quoted"])), text=True), *(Head((name,)) for name in names)]
    rows = [[f"{row.method}: {row.row} ({row.architecture})", *quoted_cells(row, names)] for row in section.published]
    table = grid(heads, rows, width, gap=1)
    return table.append(f"\nFrom {'; '.join(dict.fromkeys(row.source for row in section.published))}.", "dim")


def footer(comparison: Comparison) -> Text:
    """The machine, and what the marks mean."""
    machine = comparison.environment
    text = Text("\nmeasured", style=COLORS["measured"])
    text.append(
        f" on {machine.get('machine', 'an unknown machine')}, {machine.get('threads', '?')} threads, torch"
        f" {machine.get('torch', '?')}, {machine.get('dtype', '?')}, {machine.get('attention', '?')} attention; ",
        style="dim",
    )
    text.append("computed", style=COLORS["computed"]).append(" exactly from the recorded tokens; ", style="dim")
    text.append("quoted", style=COLORS["quoted"]).append(" from papers.\n", style="dim")
    text.append(f"{marks(comparison, 'Bold', 'underlined')} {INTERVALS}; {DIFFERS}. {SPREAD}; {RATIO}.", style="dim")
    for note in [*comparison.notes, *comparison.hints]:
        text.append(f"\n{note}", style="dim")
    return text.append(f"\n{comparison.seconds:.0f} s", style="dim")
