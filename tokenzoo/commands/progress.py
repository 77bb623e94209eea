"""The progress bar of long commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress_bar(store: Any) -> Iterator[Progress]:
    """A bar on stderr while the block runs; loads torch and transformers, whose own bars are silenced.

    Ctrl-C ends the bar, says what is kept, and goes on as KeyboardInterrupt.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        progress = Progress(bars)
        progress.say("loading torch")
        try:
            from transformers.utils import logging

            logging.disable_progress_bar()
            yield progress
        except KeyboardInterrupt:
            bars.stop()
            click.echo(f"Stopped. Finished cells are kept in {store.path}; the same command goes on from there.", err=True)
            raise


class Progress:
    """One bar: how many steps are expected and done, and what is being done."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.task = bars.add_task("", total=None)
        self.total = 0

    def expect(self, steps: int) -> None:
        self.total += steps
        self.bars.update(self.task, total=self.total)

    def advance(self, steps: int) -> None:
        self.bars.advance(self.task, steps)

    def say(self, text: str) -> None:
        self.bars.update(self.task, description=text)
