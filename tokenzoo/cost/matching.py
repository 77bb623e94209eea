"""Equal budgets: set each method by its own knob to the most that a budget allows, or say that nothing it has fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import UnreachableError

#: A method counts as set to a budget when it costs at most this share less; otherwise its knob is too coarse, and rows say so.
TOLERANCE = 0.02
#: Retentions are tried to four decimals.
STEP = 1e-4


@dataclass(frozen=True)
class Match:
    """A method set to a budget, and what it costs so; `turned` is False where it has no knob and runs as it is."""

    method: Pipeline
    cost: float
    turned: bool = True

    def close_to(self, limit: float) -> bool:
        """Whether the budget is used up but for the tolerance."""
        return self.cost >= (1 - TOLERANCE) * limit


def most_within(
    method: Pipeline,
    cost: Callable[[Pipeline], float],
    limit: float,
    layers: int,
    evaluations: int = 48,
    describe: Callable[[float], str] = "{:.4g}".format,
) -> Match:
    """Return `method` set by `at_retention` to cost as much as `limit` allows, never more.

    One without a knob is returned as it is, where it fits. `layers`: the model's decoder layers. `evaluations` bounds the
    calls of `cost`, `describe` writes a cost in messages. Raises UnreachableError where nothing that the method has is
    within the limit.
    """
    try:
        found = settings_near(method, cost, limit, layers, evaluations)
    except UnreachableError as refusal:
        own = cost(method)
        if own > limit:
            raise UnreachableError(f"{refusal} As it is it costs {describe(own)}, the budget is {describe(limit)}.") from None
        return Match(method, own, turned=False)
    fitting = [candidate for candidate in found if candidate.cost <= limit]
    if not fitting:
        least, most = (pick(found, key=lambda candidate: candidate.cost) for pick in (min, max))
        if len(found) > 1 and least.cost == most.cost:
            raise UnreachableError(
                f"No setting of '{method.name}' removes anything here: each costs {describe(least.cost)}, the budget is "
                f"{describe(limit)}. 'tokenzoo list' says whether a method reduces images or videos."
            )
        raise UnreachableError(f"Even {least.method} costs {describe(least.cost)}, the budget is {describe(limit)}.")
    return max(fitting, key=lambda candidate: candidate.cost)


def settings_near(
    method: Pipeline, cost: Callable[[Pipeline], float], limit: float, layers: int, evaluations: int
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
            found.append(Match(setting, cost(setting)))
            if 0 <= limit - found[-1].cost <= 1e-4 * limit:
                break
            low, high = (retention, high) if found[-1].cost <= limit else (low, retention)
        if high - low <= STEP:
            break
        retention = round((low + high) / 2, 4)
    if not found:
        raise refusal
    return found
