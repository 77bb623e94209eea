"""`tokenzoo show METHOD`: all there is to know about a method."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tokenzoo.zoo.describe import Description


@click.command()
@click.argument("method")
def command(method: str) -> None:
    """Show a method: what it does, its parameters and presets, its paper and how faithful it is to it."""
    from tokenzoo.errors import UserError
    from tokenzoo.zoo.describe import describe
    from tokenzoo.zoo.plugins import load_zoo

    name = re.split("[:@+]", method)[0]
    if name != method:
        raise UserError(f"'{method}' is a method with its settings; show takes a method's name. Run 'tokenzoo show {name}'.")
    _print(describe(load_zoo(), method))


def _print(method: Description) -> None:
    from tokenzoo.report.terminal import print_documentation, print_line, print_table
    from tokenzoo.zoo.describe import value_as_written

    entry = method.method
    print_line(f"{method.name}: {method.title}", "bold")
    print_documentation(method.documentation or method.summary)
    facts = [
        ("Hooks", ", ".join(method.hooks) or "none"),
        ("Reduces", ", ".join(method.reduces)),
        ("Text-aware", "yes: the prompt's text has a say in what is kept" if method.text_aware else "no"),
        ("Positions", method.positions),
        ("Token count", method.budget),
        ("Families", method.families),
        ("From", f"{method.plugin.origin} ({method.plugin.entry})"),
    ]
    if entry.paper:
        extra = entry.paper.model_extra or {}
        where = f"{entry.paper.venue} {extra.get('year', '')}".strip()
        facts.append(("Paper", ", ".join(part for part in (entry.paper.title, where, _link(entry.paper.arxiv)) if part)))
        facts.append(("Code", entry.paper.code))
    facts.append(("Faithfulness", " ".join(entry.faithfulness.split())))
    click.echo()
    print_table(("", ""), [(name, value) for name, value in facts if value])
    _section("Parameters")
    if method.parameters:
        print_table(
            ("Name", "Default", "Type", "What it does"),
            [(p.name, p.default, p.type, p.description) for p in method.parameters],
            indent=2,
        )
    else:
        click.echo("  none")
    if entry.presets:
        _section(f"Presets ({method.name}@NAME)")
        print_table(
            ("Name", "Parameters", "What it is"),
            [
                (
                    name,
                    ",".join(f"{key}={value_as_written(value)}" for key, value in preset.parameters.items()),
                    preset.description,
                )
                for name, preset in entry.presets.items()
            ],
            indent=2,
        )
    if entry.published:
        _section("Published results")
        print_line(f"  {len(entry.published)} rows; 'tokenzoo compare --with-published' shows them beside the measured ones.")


def _section(title: str) -> None:
    click.echo()
    click.echo(click.style(title, bold=True))


def _link(arxiv: str) -> str:
    return f"https://arxiv.org/abs/{arxiv}" if arxiv else ""
