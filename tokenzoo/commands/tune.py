"""`tokenzoo tune`: the best parameters of a method at one cost, and what they are worth on questions it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("tune")
@click.option("--method", metavar="SPEC", required=True, help="The method, such as aim or fastv+vtw.")
@click.option(
    "--model", metavar="NAME", default="embedded:llava", show_default=True, help="An embedded model, a directory, a Hub id."
)
@click.option(
    "--tasks", metavar="LIST", default="image", show_default=True, help="Tasks of one kind: image, video, names, folders."
)
@click.option("--budget", metavar="AMOUNT", help="What every setting may cost, as in compare (default 33% of the LLM's FLOPs).")
@click.option("--trials", default=24, show_default=True, type=click.IntRange(1, 10_000), help="Settings to try.")
@click.option("--limit", metavar="N", help="Questions per task to tune on; as many others stay unseen (default 30).")
@click.option("--seed", metavar="N", help="Seed of the questions (default 0).")
@click.option("--batch-size", metavar="N", help="Questions answered at a time (default 20).")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one).")
@click.option("--dtype", metavar="NAME", help="Weights' type: float32 (default on the CPU), float16, bfloat16, auto.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write plot and trials (PNG, PDF, JSON) there.")
@click.option("--store", "store_path", metavar="FILE", type=click.Path(path_type=Path), help="Where results are kept.")
@click.option("--fresh", is_flag=True, help="Measure everything anew, whatever the store has.")
def command(method: str, trials: int, out: Path | None, store_path: Path | None, fresh: bool, **options: Any) -> None:
    """Search a method's parameters at one cost.

    The search sees half of the questions; the table shows the other half. Each finished cell is kept: an interrupted search
    goes on where it stopped.
    """
    from tokenzoo.comparison.settings import from_options

    given = {name: value for name, value in options.items() if value is not None}
    settings = from_options({"methods": method, "timing": False, **given})
    if out:
        from tokenzoo.report.files import prepare_directory

        prepare_directory(out)
    tuning = _run(settings, trials, store_path, fresh)
    _print(tuning)
    if out:
        from tokenzoo.report.tuning import write

        write(tuning, out)
        click.echo(f"Written to {out}/", err=True)


def _run(settings: Any, trials: int, store_path: Path | None, fresh: bool) -> Any:
    from tokenzoo.commands.progress import progress_bar
    from tokenzoo.comparison.store import Store

    with Store(store_path) as store, progress_bar(store) as progress:
        from tokenzoo.comparison.tuning import tune

        return tune(settings, trials, store, progress, fresh)


def _print(tuning: Any) -> None:
    from rich.text import Text

    from tokenzoo.report.table import section_tables
    from tokenzoo.report.terminal import console
    from tokenzoo.report.tuning import lines

    out = console()
    out.print(section_tables(tuning.section, out.width))
    for line in lines(tuning):
        out.print(Text(line))
