"""`tokenzoo results`: what is in the result store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("results")
@click.option("--model", default="", metavar="TEXT", help="Only models with this in their name.")
@click.option("--method", default="", metavar="TEXT", help="Only methods with this in their specification.")
@click.option("--task", default="", metavar="TEXT", help="Only tasks with this in their name.")
@click.option(
    "--kind",
    type=click.Choice(("accuracy", "timing")),
    default="accuracy",
    show_default=True,
    help="Answers to tasks, or measured times.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "csv", "json")),
    default="table",
    show_default=True,
    help="How to print or export them.",
)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Write there instead of printing.")
@click.option("--store", "store_path", metavar="FILE", type=click.Path(path_type=Path), help="The store to read.")
def command(model: str, method: str, task: str, kind: str, form: str, out: Path | None, store_path: Path | None) -> None:
    """List the finished cells of all comparisons, or export them (JSON has every single answer)."""
    from tokenzoo.comparison.store import Store, default_path
    from tokenzoo.errors import UserError
    from tokenzoo.report.stored import cells_csv, cells_json, cells_table

    path = store_path or default_path()
    if not path.is_file():
        raise UserError(f"No results in '{path}' yet. Run 'tokenzoo compare --methods aim,fastv'.")
    with Store(path) as store:
        cells = list(store.cells(kind, model, method, task))
    if form == "table" and out is None:
        from tokenzoo.report.terminal import console

        terminal = console()
        if cells:
            terminal.print(cells_table(cells, terminal.width))
        click.echo(f"{len(cells)} cells in {path}")
        return
    text = cells_json(cells) if form == "json" else cells_csv(cells)
    _write(text, out)


def _write(text: str, out: Any) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    from tokenzoo.report.files import write_text

    write_text(out, text)
    click.echo(f"Written to {out}", err=True)
