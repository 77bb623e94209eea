"""Equal budgets: set each method by its own knob so that it costs what the others cost, or say that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import UnreachableError

#: A method counts as matched when its cost is this near to the target.
TOLERANCE = 0.02
#: Retentions are tried to four decimals.
STEP = 1e-4


@dataclass(frozen=True)
class Match:
    """A method set to a budget: what it costs so, and the retention its knob was set to."""

    method: Pipeline
    cost: float
    retention: float


def match(
    method: Pipeline,
    cost: Callable[[Pipeline], float],
    target: float,
    layers: int,
    tolerance: float = TOLERANCE,
    evaluations: int = 48,
    describe: Callable[[float], str] = "{:.4g}".format,
) -> Match:
    """Return `method` set by `at_retention` so that `cost` comes within `tolerance` of `target`.

    `layers`: the model's decoder layers. `evaluations` bounds the calls of `cost`, `describe` writes a cost in messages.
    Raises UnreachableError with the nearest setting where none is near enough, or with the method's own words where it
    has no knob.
    """
    found = settings_near(method, cost, target, layers, evaluations)
    nearest = min(found, key=lambda candidate: abs(candidate.cost - target))
    if abs(nearest.cost - target) > tolerance * target:
        raise UnreachableError(
            f"'{method}' cannot reach {describe(target)}: the nearest is {nearest.method} with {describe(nearest.cost)}."
        )
    return nearest


def most_within(method: Pipeline, cost: Callable[[Pipeline], float], limit: float, layers: int, evaluations: int = 48) -> Match:
    """Return `method` set by `at_retention` to keep as much as `limit` allows; raises UnreachableError where nothing fits."""
    found = settings_near(method, cost, limit, layers, evaluations)
    fitting = [candidate for candidate in found if candidate.cost <= limit]
    if not fitting:
        cheapest = min(found, key=lambda candidate: candidate.cost)
        raise UnreachableError(f"'{method}' does not fit: even {cheapest.method} costs {cheapest.cost:.4g}.")
    return max(fitting, key=lambda candidate: candidate.cost)


def settings_near(
    method: Pipeline, cost: Callable[[Pipeline], float], target: float, layers: int, evaluations: int
) -> list[Match]:
    """The settings that a bisection of the retention tries; `cost` must not fall as retention rises.

    Retentions that the method refuses count as too small. Raises UnreachableError, in the method's words, where it refuses all.
    """
    found: list[Match] = []
    refusal = UnreachableError(f"'{method}' has no retention knob.")
    low, high, retention = 0.0, 1.0, 1.0
    for _ in range(evaluations):
        try:
            setting = method.at_retention(retention, layers)
        except UnreachableError as error:
            refusal, low = error, min(retention, high)
            if retention == high:
                break
        else:
            found.append(Match(setting, cost(setting), retention))
            if abs(found[-1].cost - target) <= 1e-4 * target:
                break
            low, high = (retention, high) if found[-1].cost < target else (low, retention)
        if high - low <= STEP:
            break
        retention = round((low + high) / 2, 4)
    if not found:
        raise refusal
    return found
