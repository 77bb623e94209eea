"""Intervals, paired tests and spreads; tests and distributions are scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenzoo.bench import task

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies (method minus reference) on the same questions.

    `low`, `high`: its 95 % interval. `p_value`: McNemar's exact test. `lost` and `won` count the questions only the
    reference, and only the method, got right.
    """

    value: float
    low: float
    high: float
    p_value: float
    lost: int
    won: int

    @property
    def significant(self) -> bool:
        return self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float
    rounds: int


def wilson(right: int, questions: int) -> Interval:
    """Share of right answers with its Wilson interval."""
    return Interval(right / questions if questions else float("nan"), *task.wilson(right, questions))


def paired_difference(method: Sequence[bool], reference: Sequence[bool]) -> Difference:
    """Compare two methods' answers to the same questions, in the same order.

    The interval adds one question to each kind of disagreement (Bonett and Price 2012), so that it never shrinks to a
    point: few questions on which nothing changed do not prove that nothing would.
    """
    from scipy.stats import binomtest, norm

    if len(method) != len(reference):
        raise ValueError(f"{len(method)} answers cannot be paired with {len(reference)}.")
    lost = sum(theirs and not ours for ours, theirs in zip(method, reference, strict=True))
    won = sum(ours and not theirs for ours, theirs in zip(method, reference, strict=True))
    count = len(method)
    more, fewer = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    deviation = (more + fewer - (more - fewer) ** 2) / (count + 2)
    reach = float(norm.ppf(0.5 + CONFIDENCE / 2)) * deviation**0.5
    p_value = float(binomtest(won, lost + won).pvalue) if lost + won else 1.0
    return Difference(
        value=(won - lost) / count if count else float("nan"),
        low=max(-1.0, more - fewer - reach),
        high=min(1.0, more - fewer + reach),
        p_value=p_value,
        lost=lost,
        won=won,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of `values`; NaN where there are none."""
    import numpy as np

    if not values:
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high), len(values))
