"""`tokenzoo recommend`: which settings fit a budget."""

from __future__ import annotations

import json

import click

from tokenzoo.commands.options import MILLISECONDS


@click.command("recommend")
@click.option("--arch", required=True, metavar="ARCH", help="The model, such as llava-onevision-7b.")
@click.option("--hardware", required=True, metavar="GPU", help="The GPU, such as a100.")
@click.option("--budget-ms", required=True, type=MILLISECONDS, help="Prefill milliseconds, at most.")
@click.option("--video/--image", default=None, help="A video of 32 frames, or one image (default: what the model is for).")
@click.option("--convention", default="llm-viewer", show_default=True, help="How FLOPs and time are counted.")
@click.option(
    "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="How to print it."
)
def command(arch: str, hardware: str, budget_ms: float, video: bool | None, convention: str, form: str) -> None:
    """List the settings of all methods whose prefill fits the budget, least accuracy loss first where it is known."""
    from dataclasses import asdict

    from tokenzoo.cost.recommend import recommend

    found = recommend(arch, hardware, budget_ms, video, convention)
    if form == "json":
        click.echo(json.dumps(asdict(found), indent=1))
        return
    from tokenzoo.report.recommendation import recommendation
    from tokenzoo.report.terminal import console

    terminal = console()
    terminal.print(recommendation(found, terminal.width))
