"""`tokenzoo list`: every usable method under the place where it acts."""

from __future__ import annotations

import click


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
def command(form: str) -> None:
    """List the methods by where they act: the built-in ones and those that plugins add."""
    from tokenzoo.errors import UserError
    from tokenzoo.zoo.describe import Description, describe, grouped
    from tokenzoo.zoo.plugins import load_zoo

    zoo = load_zoo()
    described: list[Description] = []
    for name in zoo.names():
        try:
            described.append(describe(zoo, name))
        except UserError:
            continue  # its reason is in zoo.failures
    if form == "json":
        import json

        rows = [
            {
                "name": method.name,
                "summary": method.summary,
                "hooks": method.hooks,
                "reduces": method.reduces,
                "text_aware": method.text_aware,
                "paper": method.method.paper.arxiv if method.method.paper else "",
                "from": method.plugin.origin,
            }
            for method in described
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.text import Text

    from tokenzoo.report.grid import Line
    from tokenzoo.report.terminal import print_table

    heads = ("Method", "What it does", "Inside too", "Reduces", "Text-aware", "Published", "From")
    lines: list[list[Line]] = []
    for place, methods in grouped(described).items():
        heading = f"{place[0].upper()}{place[1:]}" if place else "No reduction"
        if lines:
            lines.append([""] * len(heads))
        lines.append([Text(heading, "bold"), *[""] * (len(heads) - 1)])
        lines += [
            [
                method.name,
                method.summary,
                "yes" if "inside the LLM" in method.hooks[1:] else "",
                ", ".join(method.reduces),
                "yes" if method.text_aware else "",
                _published(method),
                method.plugin.origin,
            ]
            for method in methods
        ]
    print_table(heads, lines)
    if zoo.failures:
        click.echo(
            f"{len(zoo.failures)} cannot be used: {', '.join(zoo.failures)}. Run 'tokenzoo plugins' or 'tokenzoo show NAME'.",
            err=True,
        )


def _published(method: object) -> str:
    paper = method.method.paper  # type: ignore[attr-defined]
    if paper is None:
        return ""
    year = (paper.model_extra or {}).get("year", "")
    return f"{paper.venue} {year}".strip() or paper.arxiv
