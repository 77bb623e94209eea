"""`tokenzoo plugins`: what is loaded, from where, and what could not be loaded and why."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Show what is loaded, from which distribution and version, and every failure with its reason."""
    import warnings

    from tokenzoo import __version__
    from tokenzoo.errors import UserError
    from tokenzoo.report.terminal import print_table
    from tokenzoo.text import visible
    from tokenzoo.zoo.plugins import PluginWarning, load_zoo

    warnings.simplefilter("ignore", PluginWarning)
    zoo = load_zoo()
    methods: dict[str, list[str]] = {}
    extra: list[tuple[str, str, str, str]] = []
    for name in zoo.names():
        try:
            zoo.method(name)
        except UserError:
            continue  # it is among the failures below
        plugin = zoo.info(name)
        methods.setdefault("tokenzoo" if plugin.kind == "built-in" else plugin.name, []).append(name)
        if plugin.kind == "registry":
            extra.append((plugin.name, plugin.kind, plugin.entry, name))
    rows = [("tokenzoo", "built-in", f"tokenzoo {__version__}", ", ".join(methods.get("tokenzoo", []))), *extra]
    for plugin in zoo.plugins:
        rows.append((plugin.name, plugin.kind, plugin.origin, ", ".join(methods.get(plugin.name, [])) or "other hooks"))
    print_table(("Plugin", "Kind", "From", "Methods"), rows)
    if zoo.failures:
        click.echo()
        print_table(("Not loaded", "Reason"), [(visible(name), visible(why)) for name, why in zoo.failures.items()])
