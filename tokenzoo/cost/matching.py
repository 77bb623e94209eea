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
    near: float = 1e-4,
) -> Match:
    """Return `method` set by `at_retention` to cost as much as `limit` allows, never more.

    One without a knob is returned as it is, where it fits. `layers`: the model's decoder layers. `evaluations` bounds the
    calls of `cost`, `describe` writes a cost in messages, `near` is the share of the limit that may be left unused. Raises
    UnreachableError where nothing that the method has is within the limit.
    """
    try:
        found = settings_near(method, cost, limit, layers, evaluations, near)
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
    method: Pipeline, cost: Callable[[Pipeline], float], limit: float, layers: int, evaluations: int, near: float
) -> list[Match]:
    """The settings that a search for the limit tries (Brent's: few tries where a cost grows evenly, safe where it jumps).

    `cost` must not fall as retention rises. Retentions that the method refuses count as too small. Raises UnreachableError, in
    the method's words, where it refuses to keep everything: it has no such knob.
    """
    from scipy.optimize import brentq

    full = method.at_retention(1.0, layers)
    found = [Match(full, cost(full))]
    ends = {0.0: -limit, 1.0: found[0].cost - limit}

    def excess(retention: float) -> float:
        if retention in ends:
            return ends[retention]
        try:
            setting = method.at_retention(max(round(retention, 4), STEP), layers)
        except UnreachableError:
            return -limit
        found.append(Match(setting, cost(setting)))
        over = found[-1].cost - limit
        return 0.0 if -near * limit <= over <= 0 else over

    if ends[1.0] > 0:
        brentq(excess, 0.0, 1.0, xtol=STEP, maxiter=evaluations - 1, disp=False)
    return found
