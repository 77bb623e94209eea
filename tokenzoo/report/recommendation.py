"""What `tokenzoo recommend` prints."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tokenzoo.cost.recommend import Recommendations
from tokenzoo.numbers import MISSING, percent


def recommendation(found: Recommendations) -> Group:
    """The settings that fit as a table, and what does not fit below it."""
    head = (
        f"\nPrefill within {found.budget_ms:g} ms on {found.target} ({found.kind}, convention {found.convention}, "
        f"unreduced {found.unreduced_ms:.2f} ms)"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("\nMethod", overflow="fold")
    table.add_column("\nFrom")
    for name in ("Prefill ms\ncomputed", "TFLOPs\ncomputed", "FLOPs\nof none", "Tokens\nmean/layer", "Loss\nquoted"):
        table.add_column(name, justify="right")
    for one in found.fitting:
        loss = MISSING if one.loss is None else f"{100 * one.loss.relative:.1f}% ({one.loss.benchmarks})"
        table.add_row(
            one.method, one.origin, f"{one.prefill_ms:.2f}", f"{one.tflops:.2f}", percent(one.share),
            f"{one.visual_tokens:.1f}", loss,
        )  # fmt: skip
    parts: list[Table | Text] = [Text(head, style="bold"), table if found.fitting else Text("Nothing fits.", style="red")]
    parts += [Text(f"{name}: {why}", style="dim") for name, why in found.refused.items()]
    sources = dict.fromkeys(one.loss.source for one in found.fitting if one.loss)
    if sources:
        parts.append(
            Text(
                "Loss: mean relative accuracy loss over the benchmarks (their number) of the printed table, against its "
                f"unreduced row, for the preset's own settings; losses of different tables do not rank. From "
                f"{'; '.join(sources)}.",
                style="dim",
            )
        )
    return Group(*parts)
