"""Traces that are wrong about what a run did: the oracle must find them."""

from __future__ import annotations

from tokenzoo.testing.case import Outcome


def swap_a_token(outcome: Outcome) -> None:
    sample = outcome.trace.samples[1]
    first, rows = sample.stages[-1]
    gone = next(row for row in range(len(sample.entry)) if row not in rows)
    kept = next(row for row in rows if sample.visual[row])
    sample.stages[-1] = (first, sorted({*rows, gone} - {kept}))


def one_layer_later(outcome: Outcome) -> None:
    for sample in outcome.trace.samples:
        first, rows = sample.stages[-1]
        sample.stages[-1] = (first + 1, rows)
