"""Which methods with which settings become rows: as asked for, at each retention, or matched to a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenzoo.comparison.rows import Status
from tokenzoo.comparison.settings import Settings, absolute, parse_share
from tokenzoo.matching import match
from tokenzoo.pipeline import Pipeline
from tokenzoo.plugins import Zoo
from tokenzoo.reducer import UnreachableError
from tokenzoo.report.numbers import percent, si

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


def at_retentions(methods: Sequence[tuple[str, Pipeline]], retentions: Sequence[float]) -> list[Candidate]:
    """`none`, then every method at each retention; those without such a knob are refused."""
    candidates = [Candidate(text, method) for text, method in methods if method.name == "none"]
    for retention in retentions:
        for text, method in methods:
            if method.name == "none":
                continue
            label = f"{text} {100 * retention:g}%"
            try:
                setting = method.at_retention(retention)
                candidates.append(Candidate(label, setting, note=f"set to {setting}"))
            except UnreachableError as error:
                candidates.append(Candidate(label, None, "refused", str(error)))
    return candidates


@dataclass(frozen=True)
class Budget:
    """What all rows shall cost: `amount` of `quantity`, as a share of the unreduced cost or absolute."""

    quantity: str
    amount: str
    unit: str
    cost: Callable[[Pipeline], float]
    unreduced: float
    evaluations: int = 48

    @property
    def target(self) -> float:
        return parse_share(self.amount) * self.unreduced if self.amount.endswith("%") else absolute(self.amount)

    def describe(self, cost: float) -> str:
        return f"{si(cost)} {self.unit} ({percent(cost / self.unreduced)})"


def matched(methods: Sequence[tuple[str, Pipeline]], budget: Budget) -> list[Candidate]:
    """`none`, then every method set to the budget; those that cannot reach it are refused with their nearest setting."""
    candidates = []
    for text, method in methods:
        if method.name == "none":
            candidates.append(Candidate(text, method))
            continue
        try:
            found = match(method, budget.cost, budget.target, evaluations=budget.evaluations, describe=budget.describe)
            note = f"matched to {budget.describe(budget.target)} by {found.method}: {budget.describe(found.cost)}"
            candidates.append(Candidate(text, found.method, note=note))
        except UnreachableError as error:
            candidates.append(Candidate(text, None, "refused", str(error)))
    return candidates
