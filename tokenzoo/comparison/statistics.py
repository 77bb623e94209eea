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

    `low`, `high`: its 95 % interval. `p_value`: McNemar's exact test, or the paired t test where answers count in part.
    `lost` and `won` count the questions on which the reference, and the method, did better.
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


def paired_difference(method: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare two methods' answers to the same questions, in the same order: right or wrong, or a score from 0 to 1 of each.

    Where answers are right or wrong, the interval adds one question to each kind of disagreement (Bonett and Price 2012), so
    that it never shrinks to a point: few questions on which nothing changed do not prove that nothing would.
    """
    from scipy.stats import binomtest, norm

    if len(method) != len(reference):
        raise ValueError(f"{len(method)} answers cannot be paired with {len(reference)}.")
    lost = sum(theirs > ours for ours, theirs in zip(method, reference, strict=True))
    won = sum(ours > theirs for ours, theirs in zip(method, reference, strict=True))
    count = len(method)
    if not set(method) | set(reference) <= {0, 1}:
        return _soft_difference(method, reference, lost, won)
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


def _soft_difference(method: Sequence[float], reference: Sequence[float], lost: int, won: int) -> Difference:
    from scipy.stats import ttest_rel

    value = (sum(method) - sum(reference)) / len(method)
    if len(method) < 2 or not lost + won:
        return Difference(value, value, value, 1.0, lost, won)
    found = ttest_rel(method, reference)
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(value, float(interval.low), float(interval.high), float(found.pvalue), lost, won)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of `values`; NaN where there are none."""
    import numpy as np

    if not values:
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high), len(values))
