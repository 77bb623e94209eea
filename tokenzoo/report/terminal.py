"""The terminal: how wide a page is, and plain tables and paragraphs on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tokenzoo.report.grid import Head, Line, grid
from tokenzoo.text import printable

#: Columns of what is read rather than compared.
PAGE = 120
#: No terminal is narrower: what says so does not know.
NARROWEST = 20


class Terminal(Console):
    """rich's console; a reader that closes the pipe ends the command as it ends any other program."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that rich is handling as it calls this


def console(width: int = 100) -> Console:
    """The terminal as wide as it is; a page of `width` columns where the output goes to a file and COLUMNS says nothing."""
    found = Terminal(highlight=False)
    if not found.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        found.width = width
    found.width = max(found.width, NARROWEST)
    return found


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Line]], indent: int = 0) -> None:
    """Print rows of text in columns, long cells folded; without headers where all are empty."""
    out = console(PAGE)
    heads = [Head((header,) if header else (), text=True) for header in headers]
    if rows:
        out.print(grid(heads, rows, out.width, indent=indent))


def print_line(text: str, style: str = "") -> None:
    """Print a sentence, wrapped."""
    console(PAGE).print(Text(printable(text), style=style))


def print_documentation(text: str) -> None:
    """Print a docstring, wrapped: Markdown in paragraphs, where a line that happens to begin with a dash is no list."""
    from rich.markdown import Markdown

    console(PAGE).print(Markdown("\n\n".join(" ".join(block.split()) for block in text.split("\n\n"))))
