"""The comparison in the terminal, readable at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenzoo.comparison.rows import Comparison, Row, Section
from tokenzoo.numbers import MISSING
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import COLUMN_GROUPS, SLOWER, benchmarks, quoted_cells

COLORS = {"measured": "green", "computed": "cyan", "quoted": "magenta"}
STYLES = {"best": "bold", "second": "underline"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every section's tables, then what they were measured on and how to read them."""
    for section in comparison.sections:
        console.print(section_tables(section))
    console.print(footer(comparison))


def section_tables(section: Section) -> RenderableType:
    """One model's tables: the summary, the tasks, the details."""
    parts: list[RenderableType] = [Text(f"\n{section.title}", style="bold"), Text(subtitle(section), style="dim")]
    parts += [Text(section.terms)] if section.terms else []
    for columns in (group(section) for group in COLUMN_GROUPS):
        if columns:
            parts.append(rows_table(columns, section.rows))
    if section.published:
        parts.append(quoted_table(section))
    parts += [
        Text(f"{SLOWER} {row.label} is slower than none ({_ratio(row)} times its prefill).", style="red")
        for row in section.rows
        if row.timing and row.timing.slower and not row.is_baseline
    ]
    problems = [row for row in section.rows if row.status != "ok"]
    parts += [Text(f"{row.label}: {row.status}: {row.note}", style="red") for row in problems]
    parts += [Text(f"{row.label}: {row.note}", style="dim") for row in section.rows if row.status == "ok" and row.note]
    return Group(*parts)


def _ratio(row: Row) -> str:
    return f"{row.timing.prefill_ratio.median:.2f}" if row.timing and row.timing.prefill_ratio else MISSING


def subtitle(section: Section) -> str:
    """How many questions, and what guessing would give."""
    chance = ", ".join(f"{task} {100 * share:.0f} %" for task, share in section.chance.items())
    return f"{section.questions} questions a method" + (f"; chance: {chance}" if chance else "")


def rows_table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A rich table of these columns; a failed row keeps its line."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="", collapse_padding=True)
    table.add_column("\n\nMethod", overflow="fold", min_width=8)
    for column in columns:
        heading = Text(f"{column.title}\n{column.unit}\n")
        table.add_column(heading.append(column.origin, style=COLORS[column.origin]), justify="right", no_wrap=True)
    ranks = [ranking(column, rows) for column in columns]
    for index, row in enumerate(rows):
        if row.status == "ok":
            cells = [
                Text(column.text(row), style=STYLES.get(rank.get(index, ""), ""))
                for column, rank in zip(columns, ranks, strict=True)
            ]
        else:
            cells = [Text(row.status if not place else "", style="red") for place in range(len(columns))]
        table.add_row(Text(row.label), *cells)
    return table


def quoted_table(section: Section) -> Table:
    """What papers printed for these methods."""
    names = benchmarks(section.published)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="", collapse_padding=True)
    table.add_column(Text("Printed row\n").append("quoted", style=COLORS["quoted"]), overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for row in section.published:
        table.add_row(f"{row.method}: {row.row} ({row.architecture})", *quoted_cells(row, names))
    table.caption = "From " + "; ".join(dict.fromkeys(row.source for row in section.published))
    return table


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
    text.append("Bold: ", style="dim").append("best", style="bold").append(", ", style="dim")
    text.append("second", style="underline").append(
        " (none left out). Brackets: 95 % intervals; * differs from none (McNemar, p < 0.05).\n±: half the interquartile"
        " range over interleaved rounds; × none: median of the ratios within a round.",
        style="dim",
    )
    for note in comparison.notes:
        text.append(f"\n{note}", style="dim")
    return text.append(f"\n{comparison.seconds:.0f} s", style="dim")
