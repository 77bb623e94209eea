"""Plain tables and paragraphs for the terminal, quick to import and the same with and without a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import click


def width() -> int:
    """Columns to print in: the terminal's, at least 60 and at most 140."""
    return max(60, min(140, shutil.get_terminal_size((120, 24)).columns))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 0) -> None:
    """Print rows in columns; the widest column gives way where the line is too short, and wraps."""
    if not rows:
        return
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    room = width() - indent - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 12:
        widths[widths.index(max(widths))] -= 1
    for number, row in enumerate([headers, *rows]):
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
        for line in range(max(map(len, cells))):
            parts = [
                (cell[line] if line < len(cell) else "").ljust(size) for cell, size in zip(cells, widths, strict=True)
            ]
            text = " " * indent + "  ".join(parts).rstrip()
            click.echo(click.style(text, bold=True) if number == 0 else text)


def print_paragraphs(text: str, indent: int = 0) -> None:
    """Print text wrapped, paragraph by paragraph."""
    blocks = text.split("\n\n")
    for number, block in enumerate(blocks):
        prefix = " " * indent
        click.echo(textwrap.fill(" ".join(block.split()), width(), initial_indent=prefix, subsequent_indent=prefix))
        if number < len(blocks) - 1:
            click.echo()
