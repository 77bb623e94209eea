"""Intervals, paired tests and spreads; the arithmetic is scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    `low`, `high`: 95 % percentile bootstrap over questions. `p_value`: McNemar's exact test. `lost` and `won` count the
    questions only the reference, and only the method, got right.
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
    from scipy.stats import binomtest

    if not questions:
        return Interval(float("nan"), 0.0, 1.0)
    interval = binomtest(right, questions).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(right / questions, float(interval.low), float(interval.high))


def paired_difference(method: Sequence[bool], reference: Sequence[bool], seed: int = 0) -> Difference:
    """Compare two methods' answers to the same questions, in the same order."""
    import numpy as np
    from scipy.stats import binomtest, bootstrap

    if len(method) != len(reference):
        raise ValueError(f"{len(method)} answers cannot be paired with {len(reference)}.")
    change = np.asarray(method, dtype=float) - np.asarray(reference, dtype=float)
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    value = float(change.mean()) if len(change) else float("nan")
    low = high = value
    if len(change) == 1:
        low, high = -1.0, 1.0  # one question says nothing about others
    elif lost + won:
        found = bootstrap(
            (change,), np.mean, confidence_level=CONFIDENCE, n_resamples=2000, method="percentile",
            vectorized=True, random_state=np.random.default_rng(seed),
        )  # fmt: skip
        low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    p_value = float(binomtest(won, lost + won).pvalue) if lost + won else 1.0
    return Difference(value, low, high, p_value, lost, won)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of `values`; NaN where there are none."""
    import numpy as np

    if not values:
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high), len(values))


def f1(answers: Sequence[str], truth: Sequence[str], positive: str = "yes") -> float:
    """F1 of the answer `positive` (POPE reports it); 0 where it is never right."""
    hits = sum(given == right == positive for given, right in zip(answers, truth, strict=True))
    said, is_so = sum(given == positive for given in answers), sum(right == positive for right in truth)
    return 2 * hits / (said + is_so) if said + is_so else 0.0
