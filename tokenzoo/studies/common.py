"""What all studies share: measuring methods on the embedded model, and the shape of a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenzoo.comparison.candidates import Candidate
from tokenzoo.comparison.compare import Progress, Runner, Silent, accuracy, questions_of
from tokenzoo.comparison.identity import Questions
from tokenzoo.comparison.plan import SectionPlan, plan_sections, tasks_of
from tokenzoo.comparison.rows import Row, TaskScore
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.statistics import Difference, paired_difference
from tokenzoo.comparison.store import Store
from tokenzoo.comparison.summary import Measured, rows_of
from tokenzoo.cost import ModelArchitecture, architecture_of
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.zoo.plugins import load_zoo

Verdict = Literal["agrees", "partly agrees", "differs", "cannot tell"]


@dataclass
class Study:
    """A finished study: a table, a plot, what was found here and what the paper found."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    here: str
    paper: str
    verdict: Verdict
    plot: Callable[[], Any]
    notes: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Lab:
    """One model, the tasks of one kind of input with their questions, and the store."""

    runner: Runner
    plan: SectionPlan
    questions: dict[str, Questions]
    correct: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def architecture(self) -> ModelArchitecture:
        return architecture_of(self.plan.checkpoint.model)

    @property
    def layers(self) -> int:
        return self.architecture.decoder.layers

    @property
    def described(self) -> str:
        count = sum(map(len, self.questions.values()))
        return f"{self.plan.title}, {', '.join(self.questions)}: {count} questions a row"

    def build(self, specification: str) -> Pipeline:
        return self.runner.zoo.build(specification)

    def measure(self, methods: Mapping[str, str]) -> list[Row]:
        """Measure methods (label -> specification); the first must be `none`. Errors are not caught: a study is whole or not."""
        measured = [Measured(Candidate(label, self.build(text))) for label, text in methods.items()]
        self.runner.progress.expect(len(measured) * sum(map(len, self.questions.values())))
        for task, asked in self.questions.items():
            for one in measured:
                self.runner.progress.say(f"{one.candidate.label} on {task}")
                one.cells[task] = accuracy(self.plan.checkpoint, one.candidate.pipeline, task, asked, self.runner)
        for one in measured:
            self.correct[one.candidate.label] = [answer.correct for task in one.cells for answer in one.predictions(task)]
        return rows_of(measured, self.plan.kind, [])

    def difference(self, label: str, reference: str) -> Difference:
        """The paired difference of two measured methods' accuracies."""
        return paired_difference(self.correct[label], self.correct[reference])


def open_lab(model: str, tasks: str, limit: int, seed: int, store: Store | None, progress: Progress | None, fresh: bool) -> Lab:
    """Load the model and draw the questions; `tasks` must be of one kind of input that the model takes."""
    settings = Settings(methods=["none"], model=[model], tasks=tasks.split(","), limit=limit, seed=seed, timing=False)
    zoo = load_zoo()
    plans = plan_sections(settings, tasks_of(settings.tasks, zoo))
    if len(plans) != 1:
        raise UserError("A study runs on one model and one kind of input: give --tasks image or --tasks video.")
    runner = Runner(settings, zoo, store, progress or Silent(), fresh, lambda text: None)
    return Lab(runner, plans[0], {task.name: questions_of(task, settings, plans[0]) for task in plans[0].tasks})


def score(row: Row) -> TaskScore:
    """A row's score over all tasks; in a study every row has one."""
    assert row.overall is not None
    return row.overall


def accuracy_text(row: Row) -> str:
    """`58.2 [55 61]`, in percent with the 95 % interval."""
    interval = score(row).accuracy
    return f"{100 * interval.value:.1f} [{100 * interval.low:.0f} {100 * interval.high:.0f}]"


def difference_text(row: Row) -> str:
    """The paired difference to `none` in points, with a star where it is significant."""
    difference = score(row).difference
    return "–" if difference is None else change(difference)


def points(row: Row) -> float:
    """Accuracy in percent."""
    return 100 * score(row).accuracy.value


def held_against(difference: Difference | None, paper: float, slack: float) -> bool | None:
    """Whether a change of accuracy is the paper's (in points) but for `slack` points, by its 95 % interval.

    True where the whole interval lies that near, False where none of it does, None where the questions are too few to tell.
    """
    if difference is None:
        return None
    low, high = 100 * difference.low - paper, 100 * difference.high - paper
    if -slack <= low and high <= slack:
        return True
    return False if high < -slack or low > slack else None


def verdict(claims: list[bool | None]) -> Verdict:
    """What a study says of the paper's claims, each as `held_against` found it."""
    if all(claims):
        return "agrees"
    if any(claims):
        return "partly agrees"
    return "differs" if False in claims else "cannot tell"


def worse(difference: Difference) -> bool:
    """Whether a difference is significantly below zero (McNemar's exact test, p < 0.05)."""
    return difference.significant and difference.value < 0


def change(difference: Difference) -> str:
    """A difference in points, with a star where it is significant."""
    return f"{100 * difference.value:+.1f}{'*' if difference.significant else ''}"


def error_bars(rows: list[Row]) -> list[list[float]]:
    """Distances from the accuracies to their interval's ends, for matplotlib."""
    return [
        [points(row) - 100 * score(row).accuracy.low for row in rows],
        [100 * score(row).accuracy.high - points(row) for row in rows],
    ]
