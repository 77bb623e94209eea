"""Search a method's parameters at one cost: on one half of the questions; what was found is measured on the other half.

The search is random in every other trial and changes one parameter of the best so far in the rest. It is drawn from a seed and
from what the trials before found, so an interrupted one, whose cells the store has, goes on where it stopped.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from tokenzoo.bench.task import Task
from tokenzoo.comparison.budgets import Budget, budget_of
from tokenzoo.comparison.candidates import Candidate, within
from tokenzoo.comparison.compare import (
    Progress,
    Runner,
    Silent,
    accuracy,
    begin_section,
    calibration,
    finish_section,
    questions_of,
)
from tokenzoo.comparison.identity import Questions
from tokenzoo.comparison.plan import SectionPlan, check_budgets, methods_of, plan_sections, tasks_of
from tokenzoo.comparison.rows import Section
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.statistics import Difference, paired_difference
from tokenzoo.comparison.store import Store
from tokenzoo.comparison.summary import Measured, rows_of
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.models.question import Question
from tokenzoo.zoo.plugins import load_zoo

#: A number is tried at these multiples of what it is.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
#: Draws of a setting that was not tried yet, before the search gives up.
DRAWS = 200


@dataclass(frozen=True)
class Axis:
    """A parameter of the pipeline's `reducer`-th method, and the values it may take."""

    reducer: int
    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """A setting at the budget; its accuracy on the calibration half and its share of `none`'s LLM FLOPs, None where it failed."""

    specification: str
    accuracy: float | None
    llm_share: float | None
    note: str = ""


@dataclass
class Tuning:
    """A finished search. `section` holds none, the baselines, the method as written and the best on the unseen half.

    `gain` is the best's accuracy there less that of the method as written; None where the latter does not run at the budget.
    """

    method: str
    trials: list[Trial]
    calibration: int
    section: Section
    gain: Difference | None

    @property
    def best(self) -> Trial:
        return best_of(self.trials)


class Half(Task):
    """Some of a task's questions, as a task."""

    def __init__(self, task: Task, questions: Sequence[Question]) -> None:
        self.name, self.modality, self.metric = task.name, task.modality, task.metric
        self.chance, self.description = task.chance, task.description
        self._questions = questions

    def questions(self, limit: int, seed: int) -> Iterator[Question]:
        return iter(self._questions[:limit])


def tune(
    settings: Settings,
    trials: int,
    store: Store | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    on_failure: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Tune the one method of `settings` at its one budget; raises UserError where there is nothing to tune."""
    zoo = load_zoo()
    text, method = _only(settings, methods_of(settings, zoo))
    check_budgets(settings.amounts, settings.convention)
    runner = Runner(settings, zoo, store, progress or Silent(), fresh, on_failure)
    plans = plan_sections(settings, tasks_of(settings.tasks, zoo, settings.frames))
    if len(plans) != 1:
        raise UserError("Tuning runs on one model and one kind of input: give --tasks image or --tasks video.")
    plan = plans[0]
    seen, unseen = _halves(plan, settings)
    axes = axes_of(method, plan.checkpoint.layers)
    if not axes:
        raise UserError(f"'{text}' has no parameter besides its retention: there is nothing to tune.")
    questions = {task.name: questions_of(task, settings, seen) for task in seen.tasks}
    runner.progress.expect((1 + trials + 5) * sum(map(len, questions.values())))
    found = _search(method, axes, trials, _judge(seen, questions, runner))
    best = best_of(found)
    if best.accuracy is None:
        raise UserError(f"No setting of '{text}' runs within the budget: {found[0].note}")
    rows = [(name, zoo.build(name)) for name in dict.fromkeys(("none", "random", "pool", text, best.specification))]
    section = finish_section(begin_section(unseen, rows, runner), [], runner)
    gain = None
    if found[0].accuracy is not None:
        gain = paired_difference(*(_right(unseen, trial.specification, runner) for trial in (best, found[0])))
    return Tuning(text, found, sum(map(len, questions.values())), section, gain)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The most accurate; of equal ones the first, so that the method as written stays where nothing is better."""
    return max(trials, key=lambda trial: -1.0 if trial.accuracy is None else trial.accuracy)


def axes_of(method: Pipeline, layers: int) -> list[Axis]:
    """What can be searched: every parameter but those that the budget sets, with the values it accepts."""
    axes = []
    for index, reducer in enumerate(method.reducers):
        hints = get_type_hints(type(reducer), include_extras=True)
        for name, value in reducer.parameters.items():
            accepted = {repr(value): value}
            for candidate in _values(hints[name], value, layers):
                try:
                    changed = _replaced(method, {index: {name: candidate}})
                except UserError:
                    continue
                if _stays(changed, index, name, layers):
                    accepted[repr(candidate)] = candidate
            if len(accepted) > 1:
                axes.append(Axis(index, name, tuple(accepted.values())))
    return axes


def _stays(method: Pipeline, index: int, name: str, layers: int) -> bool:
    """Whether a parameter keeps its value when a budget sets the method; all do where there is no one knob."""
    try:
        turned = [method.at_retention(share, layers).reducers[index].parameters[name] for share in (0.6, 0.3)]
    except UnreachableError:
        return True
    return turned == 2 * [method.reducers[index].parameters[name]]


def _values(hint: Any, value: Any, layers: int) -> tuple[Any, ...]:
    """Values to try for a parameter of this type: a layer or a small count from 0 up, numbers around what it is, all choices."""
    if get_origin(hint) is Annotated:
        return _values(get_args(hint)[0], value, layers)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for part in get_args(hint) if part is not type(None) for one in _values(part, value, layers))
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is bool:
        return (False, True)
    if hint is int:
        small = value is None or value <= layers
        return tuple(range(layers + 1)) if small else tuple(round(value * share) for share in MULTIPLES)
    if hint is float and value:
        return tuple(float(f"{value * share:.4g}") for share in MULTIPLES)
    return ()


def _search(method: Pipeline, axes: Sequence[Axis], trials: int, judge: Callable[[Pipeline], Trial]) -> list[Trial]:
    """The method as written, then `trials` others."""
    rng = np.random.default_rng(len(axes))
    found = [judge(method)]
    settings, tried = [method], {str(method)}
    for number in range(trials):
        base = settings[found.index(best_of(found))] if number % 2 else method
        setting = _draw(base, axes, rng, tried, few=bool(number % 2))
        if setting is None:
            break
        tried.add(str(setting))
        settings.append(setting)
        found.append(judge(setting))
    return found


def _draw(base: Pipeline, axes: Sequence[Axis], rng: np.random.Generator, tried: set[str], few: bool) -> Pipeline | None:
    """A setting not tried yet: one parameter changed, or each with even odds."""
    for _ in range(DRAWS):
        chosen = [axes[int(rng.integers(len(axes)))]] if few else [axis for axis in axes if rng.random() < 0.5]
        changes: dict[int, dict[str, Any]] = {}
        for axis in chosen:
            changes.setdefault(axis.reducer, {})[axis.name] = axis.values[int(rng.integers(len(axis.values)))]
        try:
            setting = _replaced(base, changes)
        except UserError:
            continue  # parameters that contradict each other
        if str(setting) not in tried:
            return setting
    return None


def _replaced(method: Pipeline, changes: dict[int, dict[str, Any]]) -> Pipeline:
    """The pipeline with other parameters, by the number of the method in it; raises UserError where one refuses them."""
    return Pipeline(tuple(reducer.replace(**changes.get(index, {})) for index, reducer in enumerate(method.reducers)))


def _judge(plan: SectionPlan, questions: dict[str, Questions], runner: Runner) -> Callable[[Pipeline], Trial]:
    """Set a method to the budget and measure it on the calibration half."""
    settings, checkpoint = runner.settings, plan.checkpoint
    none = Measured(Candidate("none", runner.zoo.build("none")))
    for task, asked in questions.items():
        none.cells[task] = accuracy(checkpoint, none.candidate.pipeline, task, asked, runner)
    task, asked = next(iter(questions.items()))
    calibrate = partial(calibration, plan, task, asked, runner)
    budget: Budget = budget_of(settings.amounts[0], plan, none.cells[task], calibrate, settings.convention)

    def judge(method: Pipeline) -> Trial:
        runner.progress.say(f"{plan.title}: {method}")
        (candidate,) = within([(str(method), method)], budget, runner.on_failure)
        if candidate.status != "ok":
            return Trial(str(method), None, None, candidate.note)
        one = Measured(candidate)
        try:
            for task, asked in questions.items():
                one.cells[task] = accuracy(checkpoint, candidate.pipeline, task, asked, runner)
        except UserError as error:
            return Trial(str(candidate.method), None, None, str(error))
        row = rows_of([none, one], plan.kind, [])[1]
        assert row.overall is not None
        return Trial(str(candidate.method), row.overall.accuracy.value, row.llm_share)

    return judge


def _halves(plan: SectionPlan, settings: Settings) -> tuple[SectionPlan, SectionPlan]:
    """The plan twice: on the first half of each task's questions and on the rest. Raises UserError where there are too few."""
    first: list[Task] = []
    second: list[Task] = []
    for task in plan.tasks:
        questions = list(task.questions(2 * settings.limit, settings.seed))
        half = len(questions) // 2
        if not half:
            raise UserError(f"Task '{task.name}' has {len(questions)} questions, too few to keep some unseen.")
        first.append(Half(task, questions[:half]))
        second.append(Half(task, questions[half:]))
    seen, unseen = (SectionPlan(plan.title, plan.kind, tasks, plan.takes_videos, plan.models) for tasks in (first, second))
    return seen, unseen


def _right(plan: SectionPlan, specification: str, runner: Runner) -> list[bool]:
    """Whether a setting answers each of the plan's questions rightly; the store has the cells by now."""
    method, right = runner.zoo.build(specification), []
    for task in plan.tasks:
        cell = accuracy(plan.checkpoint, method, task.name, questions_of(task, runner.settings, plan), runner)
        right += [answer["correct"] for answer in cell["answers"]]
    return right


def _only(settings: Settings, methods: Sequence[tuple[str, Pipeline]]) -> tuple[str, Pipeline]:
    if len(settings.methods) != 1 or settings.methods == ["all"] or len(settings.amounts) != 1:
        raise UserError("Tuning takes one method and one budget, such as --method aim --budget 33%.")
    return next(item for item in methods if item[0] == settings.methods[0])
