"""The terminal: how wide a page is, and plain tables and paragraphs on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: Columns of what is read rather than compared.
PAGE = 120


def console(width: int = 100) -> Console:
    """The terminal as wide as it is; a page of `width` columns where the output goes to a file and COLUMNS says nothing."""
    found = Console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=width)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 0) -> None:
    """Print rows of plain text in columns, long cells wrapped; without headers where all are empty."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headers))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if rows:
        console(PAGE).print(Padding(table, (0, 0, 0, indent), expand=False))


def print_documentation(text: str) -> None:
    """Print a docstring, wrapped: Markdown in paragraphs, where a line that happens to begin with a dash is no list."""
    from rich.markdown import Markdown

    console(PAGE).print(Markdown("\n\n".join(" ".join(block.split()) for block in text.split("\n\n"))))
