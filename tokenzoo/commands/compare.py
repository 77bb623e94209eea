"""`tokenzoo compare`: the table a paper would print, in one command."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from tokenzoo.errors import UserError

FORMATS = ("table", "markdown", "latex", "csv", "json", "html")


@click.command("compare")
@click.option("--methods", metavar="LIST", help="Methods, such as aim,fastv:K=3,R=0.75,prumerge+vtw, or all.")
@click.option("--model", metavar="LIST", help="embedded (default), a directory, or a Hub id; several with commas.")
@click.option("--tasks", metavar="LIST", help="Tasks by name, image, video, all (default), or folders with questions.jsonl.")
@click.option("--limit", metavar="N", help="Questions per task.")
@click.option("--seed", metavar="N", help="Seed of the questions (default 0).")
@click.option("--retention", metavar="LIST", help="Run each method at these shares of the visual tokens: 25%,50%.")
@click.option("--price", metavar="ARCH@GPU", multiple=True, help="Also price each row there: llava-1.5-7b@a100.")
@click.option("--convention", metavar="NAME", help="How prices are counted: llm-viewer (default), exact, fastv, pdrop.")
@click.option(
    "--budget", metavar="LIST", help="What methods may cost: 33% of the LLM's FLOPs (default), 2.5T, 25% tokens, 20ms@a100."
)
@click.option("--as-published", is_flag=True, default=None, help="Run each method at its own defaults: costs differ then.")
@click.option("--with-published", is_flag=True, default=None, help="Show accuracies that papers printed beside ours.")
@click.option("--batch-size", metavar="N", help="Questions answered at a time (default 20).")
@click.option("--timing/--no-timing", default=None, help="Measure time and memory (default), or only accuracy and cost.")
@click.option("--rounds", metavar="N", help="Interleaved rounds of timing (default 5).")
@click.option("--new-tokens", metavar="N", help="Tokens decoded in each round of timing (default 8).")
@click.option("--max-new-tokens", metavar="N", help="Longest answer in free form (default 16).")
@click.option("--frames", metavar="N", help="Frames taken from each of your own videos (default 8).")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one).")
@click.option("--dtype", metavar="NAME", help="Weights' type: float32 (default on the CPU), float16, bfloat16, auto.")
@click.option("--attention", metavar="NAME", help="Attention backend: sdpa (default) or eager.")
@click.option("--allow-missing", is_flag=True, default=None, help="Load a checkpoint that lacks weights: random then.")
@click.option("--log-samples", metavar="DIR", type=click.Path(path_type=Path), help="Write every answer there, as JSONL.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Read settings from YAML, or by name.")
@click.option("--save-config", metavar="FILE", type=click.Path(path_type=Path), help="Write these settings as YAML.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="What to print.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write every format and the plots there.")
@click.option("--store", "store_path", metavar="FILE", type=click.Path(path_type=Path), help="Where results are kept.")
@click.option("--fresh", is_flag=True, help="Measure everything anew, whatever the store has.")
@click.option("--ray", "address", metavar="[ADDRESS]", is_flag=False, flag_value="", help="Measure on a Ray cluster's machines.")
@click.option("--gpus-per-worker", type=float, metavar="N", help="GPUs of each Ray worker: 1 (default), a share, or 0.")
@click.option("--plan", "dry", is_flag=True, help="Check everything, say what would run, and run nothing.")
@click.option("--traceback", "tracebacks", is_flag=True, help="Print the traceback of each method that fails.")
def command(
    log_samples: Path | None,
    config: Path | None,
    save_config: Path | None,
    form: str,
    out: Path | None,
    store_path: Path | None,
    fresh: bool,
    address: str | None,
    gpus_per_worker: float | None,
    dry: bool,
    tracebacks: bool,
    **options: Any,
) -> int:
    """Compare methods in one table, at one cost: tokens, accuracy, FLOPs, time and memory.

    `none` (the unreduced model), `random` and `pool` are always among the rows. Each finished cell is kept: an interrupted
    comparison goes on where it stopped. Exits with 1 if a method failed.
    """
    from tokenzoo.comparison.plan import plan_of
    from tokenzoo.comparison.settings import from_options, read_config, write_config

    if gpus_per_worker is not None and address is None:
        raise UserError("--gpus-per-worker is for Ray workers. Pass --ray as well, or choose a GPU with --device.")
    given = {name: list(value) if name == "price" else value for name, value in options.items() if value not in (None, ())}
    settings = read_config(config, given) if config else from_options(given)
    plan = plan_of(settings)  # before torch is loaded, and anything is written
    if save_config:
        write_config(settings, save_config)
    if dry:
        _print_plan(plan)
        return 0
    from tokenzoo.report.files import prepare_directory

    for folder in (out, log_samples):
        if folder:
            prepare_directory(folder)
    comparison = _run(settings, store_path, fresh, tracebacks, log_samples, (address, gpus_per_worker))
    _print(comparison, form)
    if out:
        from tokenzoo.report.files import write_all

        write_all(comparison, out)
        click.echo(f"Written to {out}/", err=True)
    return 1 if comparison.failed else 0


def _run(
    settings: Any,
    store_path: Path | None,
    fresh: bool,
    tracebacks: bool,
    log_samples: Path | None,
    ray: tuple[str | None, float | None],
) -> Any:
    from tokenzoo.commands.progress import progress_bar
    from tokenzoo.comparison.store import Store

    with Store(store_path) as store, progress_bar(store) as progress, contextlib.ExitStack() as stack:
        from tokenzoo.comparison.compare import compare

        cluster = None if ray[0] is None else stack.enter_context(_cluster(*ray))
        on_failure = _print_traceback if tracebacks else lambda text: None
        comparison = compare(settings, store, progress, fresh, on_failure, log_samples, cluster)
    for line in cluster.summary() if cluster is not None else ():
        click.echo(line, err=True)
    return comparison


def _cluster(address: str | None, gpus_per_worker: float | None) -> Any:
    from tokenzoo.comparison.cluster import Cluster

    return Cluster(address or None, gpus_per_worker)


def _print_traceback(text: str) -> None:
    click.echo(text, err=True)


def _print(comparison: Any, form: str) -> None:
    if form == "table":
        from tokenzoo.report.table import print_comparison
        from tokenzoo.report.terminal import console

        print_comparison(comparison, console())
    else:
        from tokenzoo.report.files import rendered

        click.echo(rendered(comparison, form), nl=False)


def _print_plan(plan: Any) -> None:
    from tokenzoo.comparison.outlook import outlook
    from tokenzoo.report.outlook import outlook_lines, outlook_rows
    from tokenzoo.report.plan import plan_lines
    from tokenzoo.report.terminal import print_line, print_table

    found = outlook(plan.settings, plan.methods, plan.targets)
    if found.cells:
        print_table(*outlook_rows(found))
    if found.cells or found.notes:
        for line in outlook_lines(found):
            print_line(line)
    for line in plan_lines(plan):
        print_line(line)
