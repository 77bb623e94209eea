"""`tokenzoo list`: every usable method, one line each."""

from __future__ import annotations

import click


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
def command(form: str) -> None:
    """List the methods: the built-in ones and those that plugins add."""
    from tokenzoo.errors import UserError
    from tokenzoo.zoo.describe import Description, describe
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
                "paper": method.method.paper.arxiv if method.method.paper else "",
                "from": method.plugin.origin,
            }
            for method in described
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from tokenzoo.report.terminal import print_table

    print_table(
        ("Method", "What it does", "Hooks", "Published", "From"),
        [
            (
                method.name,
                method.summary,
                ", ".join(method.hooks) or "none",
                _published(method),
                method.plugin.origin,
            )
            for method in described
        ],
    )
    if zoo.failures:
        click.echo(f"{len(zoo.failures)} could not be loaded: {', '.join(zoo.failures)}. Run 'tokenzoo plugins'.", err=True)


def _published(method: object) -> str:
    paper = method.method.paper  # type: ignore[attr-defined]
    if paper is None:
        return ""
    year = (paper.model_extra or {}).get("year", "")
    return f"{paper.venue} {year}".strip() or paper.arxiv
