"""Equal budgets: set each method by its own knob so that it costs what the others cost, or say that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenzoo.pipeline import Pipeline
from tokenzoo.reducer import UnreachableError

#: A method counts as matched when its cost is this near to the target.
TOLERANCE = 0.02


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
    tolerance: float = TOLERANCE,
    evaluations: int = 48,
    describe: Callable[[float], str] = "{:.4g}".format,
) -> Match:
    """Return `method` set by `at_retention` so that `cost` comes within `tolerance` of `target`.

    The knob is bisected: `cost` must not fall as retention rises. `evaluations` bounds the calls of `cost`, `describe`
    writes a cost in messages. Raises UnreachableError with the nearest setting where none is near enough, or with the
    method's own words where it has no knob.
    """
    found: list[Match] = []
    refusal: UnreachableError | None = None
    low, high, retention = 0.0, 1.0, 1.0
    for _ in range(evaluations):
        try:
            setting = method.at_retention(retention)
            candidate = Match(setting, cost(setting), retention)
        except UnreachableError as error:
            refusal = refusal or error
            if retention == 1.0:
                high = 1.0
            low = retention if retention < 1.0 else low
        else:
            found.append(candidate)
            if abs(candidate.cost - target) <= 1e-4 * target:
                break
            low, high = (retention, high) if candidate.cost < target else (low, retention)
        if high - low < 1e-5:
            break
        retention = (low + high) / 2
    if not found:
        raise refusal or UnreachableError(f"'{method}' has no retention knob.")
    nearest = min(found, key=lambda candidate: abs(candidate.cost - target))
    if abs(nearest.cost - target) > tolerance * target:
        raise UnreachableError(
            f"'{method}' cannot reach {describe(target)}: the nearest is {nearest.method} with {describe(nearest.cost)}."
        )
    return nearest
