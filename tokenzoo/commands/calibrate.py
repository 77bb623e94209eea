"""`tokenzoo calibrate`: fit a method's parameters to a model, and write them as a preset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenzoo.commands.options import BATCH, DTYPE, QUESTIONS, SEED
from tokenzoo.errors import FailedError, UserError

if TYPE_CHECKING:
    from tokenzoo.method.reducer import TokenReducer


@click.command("calibrate")
@click.option("--method", metavar="SPEC", required=True, help="A method that can be fitted to a model: fitprune, vtw.")
@click.option(
    "--model", metavar="NAME", default="embedded:llava", show_default=True, help="An embedded model, a directory, a Hub id."
)
@click.option("--tasks", metavar="LIST", default="image", show_default=True, help="What to ask: image, video, names, folders.")
@click.option("--budget", metavar="SHARE", help="Share of the FLOPs to leave, such as 40% (default: the method's own).")
@click.option("--limit", type=QUESTIONS, default=20, show_default=True, help="Questions per task.")
@click.option("--seed", type=SEED, default=1, show_default=True, help="Seed of the questions; 'compare' asks those of seed 0.")
@click.option("--batch-size", type=BATCH, default=10, show_default=True, help="Questions in one forward pass.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one).")
@click.option("--dtype", type=DTYPE, help="Weights' type (default: float32 on the CPU).")
@click.option("--preset", metavar="NAME", help="Name of the preset (default: the model's and the budget's).")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Write the preset there (default: print it).")
def command(
    method: str,
    model: str,
    tasks: str,
    budget: str | None,
    limit: int,
    seed: int,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    preset: str | None,
    out: Path | None,
) -> None:
    """Fit a method's parameters to a model on questions about pictures, and write them as a preset of a registry file.

    \b
    tokenzoo calibrate --method fitprune --budget 40% --preset mine --out mine.yaml
    tokenzoo --registry mine.yaml compare --methods fitprune@mine
    """
    from tokenzoo.bench.evaluate import batches
    from tokenzoo.comparison.plan import tasks_of
    from tokenzoo.models.checkpoint import load
    from tokenzoo.zoo.plugins import load_zoo
    from tokenzoo.zoo.specification import split_methods

    zoo, share = load_zoo(), _share(budget)
    reducers = zoo.build(method).reducers
    if len(reducers) > 1:
        raise UserError(f"'{method}' is several methods. Calibrate one at a time.")
    if not reducers[0].implements("calibrate"):
        able = [name for name in zoo.names() if zoo.method(name)().implements("calibrate")]
        raise UserError(f"'{reducers[0].name}' has nothing to calibrate. Choose from: {', '.join(able)}.")
    asked = tasks_of(split_methods(tasks), zoo)
    checkpoint = load(model, dtype, device=device)
    questions = [question for task in asked for question in task.questions(limit, seed)]
    calls = [{**checkpoint.inputs(batch), "logits_to_keep": 1} for batch in batches(checkpoint, questions, batch_size)]
    found = reducers[0].calibrate(checkpoint.model, calls, share)
    name = preset or "-".join(re.findall(r"[a-z0-9]+", f"{Path(model).name} {budget or ''}".lower()))
    where = f"{len(questions)} questions of {', '.join(task.name for task in asked)}, seed {seed}"
    text = _registry(found, name, f"calibrated on {model}, {where}" + (f", budget {budget}" if budget else ""))
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FailedError(f"Cannot write '{out}': {error.strerror}.") from None
    click.echo(f"Written to {out}. Try it: tokenzoo --registry {out} compare --methods {found.name}@{name}")


def _share(budget: str | None) -> float | None:
    from tokenzoo.comparison.amounts import Amount

    if budget is None:
        return None
    try:
        amount = Amount.parse(budget)
    except ValueError as error:
        raise UserError(f"--budget: {error}.") from None
    if not amount.share or amount.quantity != "flops":
        raise UserError(f"--budget is a share of the FLOPs here, such as 40%, not '{budget}'.")
    return amount.value


def _registry(method: TokenReducer, preset: str, description: str) -> str:
    """A registry file with this method's parameters, those that are not the defaults, as a preset."""
    import yaml

    usual = type(method)().parameters
    changed: dict[str, Any] = {name: value for name, value in method.parameters.items() if value != usual[name]}
    written = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    entry = {preset: {"parameters": written, "description": description}}
    return yaml.safe_dump({"methods": {method.name: {"presets": entry}}}, sort_keys=False, default_flow_style=None, width=120)
