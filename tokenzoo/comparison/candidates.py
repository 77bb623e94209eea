"""Which methods with which settings become rows: set to a budget, at each retention, or as they were published."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenzoo.comparison.budgets import NEAR, TRIALS, Budget
from tokenzoo.comparison.labels import changed, label_of
from tokenzoo.comparison.plan import Methods
from tokenzoo.comparison.rows import Status
from tokenzoo.cost.matching import most_within
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.zoo.errors import PluginError, kept_from_ending, reason

OnFailure = Callable[[str], None]


@dataclass
class Candidate:
    """A row to be: its label, its method set as it will run (None where that was refused), and what went wrong.

    `budget` is what it was set to, as written; `at_budget` whether it uses it up but for the tolerance.
    """

    label: str
    method: Pipeline | None
    status: Status = "ok"
    note: str = ""
    budget: str = ""
    at_budget: bool = False

    @property
    def name(self) -> str:
        return self.method.name if self.method is not None else self.label.split("@")[0].split(":")[0].split()[0]

    @property
    def pipeline(self) -> Pipeline:
        """The method of a candidate that was not refused."""
        assert self.method is not None, f"'{self.label}' was refused"
        return self.method


def as_published(methods: Methods) -> list[Candidate]:
    """Every method as it was written."""
    return [Candidate(text, method) for text, method in methods]


def at_retentions(methods: Methods, retentions: Sequence[float], layers: int, on_failure: OnFailure) -> list[Candidate]:
    """`none`, then every method at each retention; those without such a knob are refused."""
    candidates = [Candidate(text, method) for text, method in methods if method.name == "none"]
    for retention in retentions:
        for text, method in methods:
            if method.name != "none":

                def at(method: Pipeline = method, text: str = text, retention: float = retention) -> Candidate:
                    setting = method.at_retention(retention, layers)
                    return Candidate(label_of(text, method, setting), setting, budget=f"{100 * retention:g}% retention")

                candidates.append(_set(f"{text} {100 * retention:g}%", at, on_failure))
    return _distinct(candidates)


def within(methods: Methods, budget: Budget, on_failure: OnFailure) -> list[Candidate]:
    """Every method but `none` set to the most that the budget allows; those with nothing below it are refused."""
    candidates = []
    for text, method in methods:
        if method.name == "none":
            continue

        def to_budget(method: Pipeline = method, text: str = text) -> Candidate:
            method.check_model(budget.architecture)
            search: dict[str, Any] = {} if method.fixed_schedule else {"evaluations": TRIALS, "near": NEAR}
            layers = budget.architecture.layers
            found = most_within(method, budget.cost, budget.limit, layers, describe=budget.describe, **search)
            label, close = label_of(text, method, found.method), found.close_to(budget.limit)
            notes = []
            if not close:
                why = "the nearest setting below the budget" if found.turned else "no knob to set it by"
                notes.append(f"costs {budget.describe(found.cost)} of {budget.describe(budget.limit)}: {why}")
            if overruled := changed(text, method, found.method):
                notes.append(f"{overruled} gave way to the budget (--as-published keeps it)")
            return Candidate(label, found.method, note="; ".join(notes), budget=budget.amount.text, at_budget=close)

        candidates.append(_set(text, to_budget, on_failure, budget.amount.text))
    return _distinct(candidates)


def _set(label: str, make: Callable[[], Candidate], on_failure: OnFailure, budget: str = "") -> Candidate:
    """A candidate set by `make`: refused where the method says so, failed where it breaks (the traceback is handed on)."""
    try:
        with kept_from_ending():
            return make()
    except UserError as error:
        return Candidate(label, None, "refused", str(error), budget)
    except PluginError as error:
        return Candidate(label, None, "failed", f"{error} (setting it)", budget)
    except Exception as error:
        on_failure(traceback.format_exc())
        return Candidate(label, None, "failed", f"{reason(error)} (setting it)", budget)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Without a method that was set to the same twice; labels that only rounding made equal are written in full."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(str(candidate.method or candidate.label), candidate)
    labels = [candidate.label for candidate in found.values()]
    for exact, candidate in found.items():
        if labels.count(candidate.label) > 1:
            candidate.label = exact
    return list(found.values())
