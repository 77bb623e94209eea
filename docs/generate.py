"""The reference pages, made from the code when the documentation is built, so that they cannot fall behind it.

mkdocs calls `on_files` (mkdocs.yml, hooks); `python docs/generate.py DIR` writes the pages to a folder to look at.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tokenzoo.cli import COMMANDS, LazyGroup, cli
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import OVERRIDABLE
from tokenzoo.zoo.describe import Description, describe, grouped, value_as_written
from tokenzoo.zoo.hookspecs import RegistrationHooks, RunHooks
from tokenzoo.zoo.plugins import load_zoo


def hooks_page() -> str:
    """Every hook: what a method implements, and the pluggy hooks that plugins may use directly."""
    parts = [
        "# Hooks\n",
        "A method is a dataclass that subclasses `tokenzoo.TokenReducer` and implements what it needs of these. The host",
        "calls them for one sample at a time, without padding. [Write a method](write-a-method.md) walks through one.\n",
        "## What a method implements\n",
    ]
    for name in OVERRIDABLE:
        parts.append(_function(name, getattr(TokenReducer, name)))
    parts.append("## What the host hands over\n")
    from tokenzoo import CachedLayer, CacheRead, DecoderLayer, EncoderLayer, VisualTokens

    for event in (EncoderLayer, VisualTokens, DecoderLayer, CachedLayer, CacheRead):
        parts.append(f"### `{event.__name__}`\n\n{inspect.cleandoc(event.__doc__ or '')}\n")
        for name, value in vars(event).items():
            if inspect.isfunction(value) and not name.startswith("_"):
                parts.append(_function(name, value, "####"))
    parts.append("## pluggy hooks\n")
    parts.append("For plugins that only watch, or that add more than methods. Decorate with `@tokenzoo.hookimpl`.\n")
    for spec in (RunHooks, RegistrationHooks):
        parts.append(f"### {inspect.cleandoc(spec.__doc__ or '').rstrip('.')}\n")
        for name, value in vars(spec).items():
            if name.startswith("tokenzoo_"):
                parts.append(_function(name, value, "####"))
    return "\n".join(parts)


def _function(name: str, function: Callable[..., Any], heading: str = "###") -> str:
    signature = inspect.signature(function)
    shown = str(signature.replace(parameters=list(signature.parameters.values())[1:])).replace("'", "")
    return f"{heading} `{name}`\n\n```text\n{name}{shown}\n```\n\n{inspect.cleandoc(function.__doc__ or '')}\n"


def methods_page() -> str:
    """Every built-in method, from registry.yaml and its class."""
    zoo = load_zoo((), ())
    described = [describe(zoo, name) for name in zoo.names() if zoo.info(name).kind == "built-in"]
    parts = [
        "# Methods\n",
        "Grouped by the first place where they act. Text-aware: the prompt's text has a say in what is kept.\n",
    ]
    for place, methods in grouped(described).items():
        parts.append(f"**{place[0].upper()}{place[1:]}**\n" if place else "**No reduction**\n")
        parts.append("| Method | What it does | Inside the LLM too | Reduces | Text-aware |\n|---|---|---|---|---|")
        for m in methods:
            inside, aware = ("yes" if it else "" for it in ("inside the LLM" in m.hooks[1:], m.text_aware))
            reduces = ", ".join(m.reduces) or "nothing"
            parts.append(f"| [`{m.name}`](#{m.name}) | {_cell(m.summary)} | {inside} | {reduces} | {aware} |")
        parts.append("")
    head = "\n".join(parts)
    return head + "\n".join(map(_method, described))


def _method(method: Description) -> str:
    entry = method.method
    parts = [f"\n## {method.title} {{ #{method.name} }}\n", method.documentation, ""]
    if entry.paper:
        year = (entry.paper.model_extra or {}).get("year", "")
        link = f"[{entry.paper.title}](https://arxiv.org/abs/{entry.paper.arxiv})"
        parts.append(f"**Paper:** {link}, {entry.paper.venue} {year}. **Code:** <{entry.paper.code}>\n")
    parts.append(f"**Faithfulness:** {' '.join(entry.faithfulness.split())}\n")
    parts.append(f"**Positions:** {method.positions}. **Token count:** {method.budget}. **Families:** {method.families}.\n")
    if method.parameters:
        parts.append("| Parameter | Default | Type | |\n|---|---|---|---|")
        parts += [f"| `{p.name}` | `{p.default}` | {_cell(p.type)} | {_cell(p.description)} |" for p in method.parameters]
        parts.append("")
    if entry.presets:
        parts.append("| Preset | Parameters | |\n|---|---|---|")
        for name, preset in entry.presets.items():
            values = ",".join(f"{key}={value_as_written(value)}" for key, value in preset.parameters.items())
            parts.append(f"| `{method.name}@{name}` | `{values}` | {_cell(preset.description)} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def cli_page() -> str:
    """The help of every command."""
    context = click.Context(cli, info_name="tokenzoo", max_content_width=100, terminal_width=100)
    parts = ["# Command line\n", f"```text\n{cli.get_help(context)}\n```\n"]
    group = cli
    assert isinstance(group, LazyGroup)
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        parts.append(f"## tokenzoo {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"hooks.md": hooks_page, "methods.md": methods_page, "cli.md": cli_page}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the generated pages."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for page, make in PAGES.items():
        (target / page).write_text(make(), encoding="utf-8")
