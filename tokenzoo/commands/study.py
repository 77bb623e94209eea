"""`tokenzoo study NAME`: a finding of AIM's paper, measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tokenzoo.commands.options import QUESTIONS, SEED

NAMES = ("tradeoff", "overhead", "layers", "text-tokens", "agreement")


#: What `agreement` runs on where nothing else was asked for: each kind of input on the embedded model that is best at it.
EVERY_KIND = [("embedded:llava", "image"), ("embedded:onevision", "video")]
SAID = {
    "agrees": "This agrees with the paper.",
    "partly agrees": "This partly agrees with the paper.",
    "differs": "This differs from the paper.",
    "cannot tell": "The questions are too few to tell whether this agrees with the paper.",
}


@click.command("study")
@click.argument("name", type=click.Choice(NAMES))
@click.option(
    "--model", help="embedded:llava (default), embedded:onevision, a directory, a Hub id; agreement: each kind on its own."
)
@click.option("--tasks", help="Tasks of one kind: image (default), video, or names.")
@click.option("--limit", default=60, show_default=True, type=QUESTIONS, help="Questions per task.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the questions.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write plot (PNG, PDF) and data (JSON) there.")
@click.option("--store", "store_path", metavar="FILE", type=click.Path(path_type=Path), help="Where results are kept.")
@click.option("--fresh", is_flag=True, help="Measure everything anew, whatever the store has.")
def command(
    name: str, model: str | None, tasks: str | None, limit: int, seed: int, out: Path | None, store_path: Path | None, fresh: bool
) -> None:
    """Measure one of the paper's findings, and say whether it holds here.

    \b
    tradeoff     retention against accuracy and FLOPs
    overhead     what the methods themselves cost
    layers       pruning early or late
    text-tokens  hiding text tokens from layer k on
    agreement    the order of methods, against published tables (images and videos)
    """
    if out:
        from tokenzoo.report.files import prepare_directory

        prepare_directory(out)
    study = _run(name, model, tasks, limit, seed, store_path, fresh)
    _print(study)
    if out:
        _write(study, out)
        click.echo(f"Written to {out}/", err=True)


def _run(name: str, model: str | None, tasks: str | None, limit: int, seed: int, store_path: Path | None, fresh: bool) -> Any:
    import importlib

    from tokenzoo.commands.progress import progress_bar
    from tokenzoo.comparison.plan import plan_of
    from tokenzoo.comparison.settings import from_options
    from tokenzoo.comparison.store import Store

    for option, value in (("model", model), ("tasks", tasks)):
        if value is not None:  # looked at before torch is loaded
            plan_of(from_options({"methods": "none", "limit": limit, "seed": seed, "timing": False, option: value}))
    with Store(store_path) as store, progress_bar(store) as progress:
        from tokenzoo.studies.common import open_lab

        module = importlib.import_module(f"tokenzoo.studies.{name.replace('-', '_')}")
        if name != "agreement":
            return module.run(open_lab(model or "embedded:llava", tasks or "image", limit, seed, store, progress, fresh))
        kinds = [(model, tasks)] if model or tasks else EVERY_KIND
        labs = [open_lab(one or "embedded:llava", of or "image", limit, seed, store, progress, fresh) for one, of in kinds]
        return module.run(labs)


def _print(study: Any) -> None:
    from rich.text import Text

    from tokenzoo.report.grid import Head, grid
    from tokenzoo.report.terminal import console

    out = console()
    heads = [Head(tuple(head.split("\n")), text=not index) for index, head in enumerate(study.header)]
    out.print(Text(f"\n{study.title}", style="bold"), grid(heads, study.rows, out.width), sep="\n")
    out.print(Text("\nHere: ", style="bold").append(study.here, style="not bold"))
    out.print(Text("Paper: ", style="bold").append(study.paper, style="not bold"))
    out.print(Text(SAID[study.verdict], style="bold"))
    for note in study.notes:
        out.print(Text(note, style="dim"))


def _write(study: Any, out: Path) -> None:
    from tokenzoo.report.files import write_text
    from tokenzoo.report.plots import save

    drawn = study.plot()
    for ending in ("png", "pdf"):
        save(drawn, out / f"{study.name}.{ending}")
    found = {"study": study.name, "title": study.title, "here": study.here, "paper": study.paper, "verdict": study.verdict}
    write_text(out / f"{study.name}.json", json.dumps({**found, "rows": study.data}, indent=1) + "\n")
