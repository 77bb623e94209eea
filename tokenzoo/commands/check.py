"""`tokenzoo check`: a method against the host's guarantees, in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

#: The number formats that tiny models can be checked in.
DTYPES = ("float32", "float64", "bfloat16", "float16")


@click.command()
@click.argument("target")
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME",
    help="Check on this family (default: seven that differ most). May be repeated.",
)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Attention backend: sdpa or eager (both), or flash_attention_2."
)
@click.option("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (cpu).")
@click.option("--dtype", metavar="NAME", default="float32", help="float32, float64, bfloat16 or float16 (float32).")
@click.option("--all", "everything", is_flag=True, help="Print every finding, not just the first of each kind.")
def command(target: str, families: tuple[str, ...], backends: tuple[str, ...], device: str, dtype: str, everything: bool) -> None:
    """Test a method (a FILE, or a method's name with parameters) on tiny random models of the families.

    Exit code 0: every guarantee holds; 1: at least one does not, and the findings say which and where.
    """
    methods, failure = _methods(target)  # before torch is loaded
    from rich.console import Console

    from tokenzoo.errors import FailedError, unknown
    from tokenzoo.lazy import torch
    from tokenzoo.testing.check import BACKENDS, FLASH, check_all, check_place
    from tokenzoo.testing.findings import Finding
    from tokenzoo.testing.models import FAMILIES, USUAL, Place

    for given, known in ((families, FAMILIES), (backends, (*BACKENDS, *FLASH)), ((dtype,), DTYPES)):
        for name in given:
            if name not in known:
                what = "family" if known is FAMILIES else "dtype" if known is DTYPES else "backend"
                raise unknown(what, name, known, "tokenzoo check --help")
    place = Place(device, getattr(torch, dtype))
    check_place(place, backends)
    findings = [failure] if failure else []
    for method in methods:
        with Console(stderr=True).status(method.name) as status:
            result = check_all(method, families or USUAL, backends or BACKENDS, status.update, place)
        click.echo(f"{method.name}: {result.runs} runs on {len(families or USUAL)} model families, {place}.")
        for note in result.notes:
            click.echo(f"  {note}")
        for family, why in result.unsupported.items():
            click.echo(f"  not on {family}, refused by the method: {why}")
        findings += result.findings
    shown: set[Any] = set()
    for finding in findings:
        assert isinstance(finding, Finding)
        kind = (finding.guarantee, re.sub(r"[\d.]+(e[+-]?\d+)?", "#", finding.message))
        if everything or kind not in shown:
            click.echo(f"  {finding}")
        shown.add(kind)
    if findings:
        hidden = "" if everything or len(findings) == len(shown) else f" All {len(findings)} findings: --all."
        raise FailedError(f"'{target}' does not keep the guarantees.{hidden}")
    click.echo("Every guarantee holds.")


def _methods(target: str) -> tuple[list[Any], Any]:
    """The methods to check, or the finding that says why there are none."""
    import warnings

    from tokenzoo.errors import UserError
    from tokenzoo.paths import is_file
    from tokenzoo.testing.findings import Finding
    from tokenzoo.zoo.plugins import PluginWarning, configured, load_zoo

    if target.endswith(".py") and not is_file(target):
        raise UserError(f"'{target}': there is no file of that name. Give a plugin's file, or a method as in 'tokenzoo list'.")
    if not is_file(target):
        return list(load_zoo().build(target).reducers), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        files, registries = configured()
        zoo = load_zoo([*files, target], registries)
    entry = str(Path(target))
    if not any(plugin.kind == "file" and plugin.entry == entry for plugin in zoo.plugins):
        return [], Finding(0, entry, zoo.failures.get(Path(target).stem, "it adds no method."))
    names = [name for name in zoo.names() if zoo.info(name).kind == "file" and zoo.info(name).entry == entry]
    classes: list[Any] = [zoo.method(name) for name in names]
    return [cls() for cls in classes], None
