"""Which methods with which settings become rows: as asked for, at each retention, or matched to a budget."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tokenzoo.comparison.rows import Status
from tokenzoo.comparison.settings import Settings, absolute, parse_share
from tokenzoo.cost.matching import match
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.numbers import percent, si
from tokenzoo.zoo.plugins import Zoo

#: Rows of every comparison: the model as it is, and the baseline that published methods often fail to beat.
ALWAYS = ("none", "random")


@dataclass
class Candidate:
    """A row to be: its label, its method set as it will run (None where that was refused), and what went wrong."""

    label: str
    method: Pipeline | None
    status: Status = "ok"
    note: str = ""

    @property
    def name(self) -> str:
        return self.method.name if self.method is not None else self.label.split("@")[0].split(":")[0].split()[0]

    @property
    def pipeline(self) -> Pipeline:
        """The method of a candidate that was not refused."""
        assert self.method is not None, f"'{self.label}' was refused"
        return self.method


def methods_of(settings: Settings, zoo: Zoo) -> list[tuple[str, Pipeline]]:
    """The methods asked for, as written and as built, with `none` and `random` first. Raises UserError for wrong ones."""
    wanted: list[str] = []
    for text in settings.methods:
        wanted += [name for name in zoo.names() if name not in ALWAYS] if text == "all" else [text]
    named = {text.split(":")[0] for text in wanted}
    texts = dict.fromkeys([name for name in ALWAYS if name not in named] + wanted)
    built = [(text, zoo.build(text)) for text in texts]
    return sorted(built, key=lambda item: item[1].name != "none")


def at_retentions(
    methods: Sequence[tuple[str, Pipeline]], retentions: Sequence[float], layers: int, on_failure: Callable[[str], None]
) -> list[Candidate]:
    """`none`, then every method at each retention; those without such a knob are refused."""

    def at(method: Pipeline, retention: float) -> tuple[Pipeline, str]:
        setting = method.at_retention(retention, layers)
        return setting, f"set to {setting}"

    candidates = [Candidate(text, method) for text, method in methods if method.name == "none"]
    for retention in retentions:
        for text, method in methods:
            if method.name != "none":
                candidates.append(_set(f"{text} {100 * retention:g}%", partial(at, method, retention), on_failure))
    return candidates


def _set(label: str, make: Callable[[], tuple[Pipeline, str]], on_failure: Callable[[str], None]) -> Candidate:
    """A candidate set by `make`: refused where the method says so, failed where it breaks (the traceback is handed on)."""
    try:
        method, note = make()
    except UserError as error:
        return Candidate(label, None, "refused", str(error))
    except Exception as error:
        on_failure(traceback.format_exc())
        return Candidate(label, None, "failed", f"{type(error).__name__}: {error} (setting it)")
    return Candidate(label, method, note=note)


@dataclass(frozen=True)
class Budget:
    """What all rows shall cost: `amount` of `quantity`, as a share of the unreduced cost or absolute."""

    quantity: str
    amount: str
    unit: str
    cost: Callable[[Pipeline], float]
    unreduced: float
    layers: int
    evaluations: int = 48

    @property
    def target(self) -> float:
        return parse_share(self.amount) * self.unreduced if self.amount.endswith("%") else absolute(self.amount)

    def describe(self, cost: float) -> str:
        return f"{si(cost)} {self.unit} ({percent(cost / self.unreduced)})"


def matched(methods: Sequence[tuple[str, Pipeline]], budget: Budget, on_failure: Callable[[str], None]) -> list[Candidate]:
    """`none`, then every method set to the budget; those that cannot reach it are refused with their nearest setting."""

    def to_budget(method: Pipeline) -> tuple[Pipeline, str]:
        found = match(method, budget.cost, budget.target, budget.layers, evaluations=budget.evaluations, describe=budget.describe)
        note = f"matched to {budget.describe(budget.target)} by {found.method}: {budget.describe(found.cost)}"
        return found.method, note

    return [
        Candidate(text, method) if method.name == "none" else _set(text, partial(to_budget, method), on_failure)
        for text, method in methods
    ]
