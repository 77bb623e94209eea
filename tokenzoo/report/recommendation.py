"""What `tokenzoo recommend` prints."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from tokenzoo.cost.recommend import Recommendations
from tokenzoo.numbers import MISSING, percent
from tokenzoo.report.grid import Head, grid


def recommendation(found: Recommendations, width: int) -> Group:
    """The settings that fit as a table, and what does not fit below it."""
    head = (
        f"\nPrefill within {found.budget_ms:g} ms on {found.target} ({found.kind}, convention {found.convention}, "
        f"unreduced {found.unreduced_ms:.2f} ms)"
    )
    heads = [Head(("Method",), text=True), Head(("From",), text=True)]
    titles = {"Prefill ms": "computed", "TFLOPs": "computed", "FLOPs": "of none", "Tokens": "mean/layer", "Loss": "quoted"}
    heads += [Head(lines) for lines in titles.items()]
    rows = []
    for one in found.fitting:
        loss = MISSING if one.loss is None else f"{100 * one.loss.relative:.1f}% ({one.loss.benchmarks})"
        numbers = [f"{one.prefill_ms:.2f}", f"{one.tflops:.2f}", percent(one.share), f"{one.visual_tokens:.1f}", loss]
        rows.append([one.method, one.origin, *numbers])
    table = grid(heads, rows, width) if rows else Text("Nothing fits.", style="red")
    parts = [Text(head, style="bold"), table]
    parts += [Text(f"{name}: {why}", style="dim") for name, why in found.refused.items()]
    sources = dict.fromkeys(one.loss.source for one in found.fitting if one.loss)
    if sources:
        parts.append(
            Text(
                "Loss: mean relative accuracy loss over the benchmarks (their number) of the printed table, against its "
                f"unreduced row, for the preset's own settings; losses of different tables cannot be compared. From "
                f"{'; '.join(sources)}.",
                style="dim",
            )
        )
    return Group(*parts)
