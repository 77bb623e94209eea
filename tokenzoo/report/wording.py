"""The sentences around a comparison's tables, said once for every renderer."""

from __future__ import annotations

from tokenzoo.comparison.rows import Comparison, Row, Section
from tokenzoo.numbers import MISSING

INTERVALS = "Brackets: 95 % intervals (Wilson; of differences, Bonett and Price)"
DIFFERS = "* differs from none (McNemar's exact test, p < 0.05)"
SPREAD = "±: half the interquartile range over interleaved rounds"
RATIO = "× none: time divided by that of none in the same round, median over the rounds"


def subtitle(section: Section) -> str:
    """How many questions, and what guessing would give."""
    chance = ", ".join(f"{task} {100 * share:.0f} %" for task, share in section.chance.items())
    return f"{section.questions} questions a method" + (f"; chance: {chance}" if chance else "")


def remarks(section: Section) -> list[str]:
    """What is to be said of single rows, failed and refused ones first, and then of all."""
    said = [f"{row.label}: {row.status}: {row.note}" for row in section.rows if row.status != "ok"]
    said += [f"{row.label}: {row.note}" for row in section.rows if row.status == "ok" and row.note]
    return said + section.warnings


def slower(section: Section) -> list[str]:
    """The rows that need more time than `none`."""
    rows = [row for row in section.rows if row.timing and row.timing.slower and not row.is_baseline]
    return [f"{row.label} is slower than none ({_ratio(row)} times its prefill)." for row in rows]


def marks(comparison: Comparison, best: str, second: str) -> str:
    """How the best rows are marked, or why none is."""
    if not any(section.equal_cost for section in comparison.sections):
        return "No row is marked as the best, since costs differ."
    return f"{best}: best, {second}: second best, among rows of one budget (none left out)."


def _ratio(row: Row) -> str:
    return f"{row.timing.prefill_ratio.median:.2f}" if row.timing and row.timing.prefill_ratio else MISSING
