"""Compare methods on the same questions, the same model and the same clock; the result is rows.

from tokenzoo.comparison.compare import compare
from tokenzoo.comparison.samples import write_samples
from tokenzoo.comparison.settings import Settings
comparison = compare(Settings(methods="aim,fastv", limit=100))
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tokenzoo.bench.local import LocalTask
from tokenzoo.bench.task import Task
from tokenzoo.bench.timing import MethodError, environment
from tokenzoo.comparison import cells
from tokenzoo.comparison.budgets import CALIBRATION, budget_of, check_budgets
from tokenzoo.comparison.candidates import Candidate, as_published, at_retentions, methods_of, within
from tokenzoo.comparison.identity import Questions, accuracy_identity, timing_identity
from tokenzoo.comparison.plan import SectionPlan, left_out, plan_sections, tasks_of
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.comparison.samples import write_samples
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store, StoreError
from tokenzoo.comparison.summary import Measured, published_of, rows_of, terms_of, warnings_of
from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint, knows
from tokenzoo.models.question import Question
from tokenzoo.zoo.errors import PluginError, kept_from_ending
from tokenzoo.zoo.plugins import Zoo, load_zoo

#: An interquartile range of prefill above this share of the median tells of a busy machine.
BUSY = 0.3


class Progress(Protocol):
    """Who is told how far a comparison is; `tokenzoo compare` draws a bar."""

    def expect(self, steps: int) -> None:
        """So many more steps will come."""

    def advance(self, steps: int) -> None:
        """So many steps are done."""

    def say(self, text: str) -> None:
        """What is being done now."""


class Silent:
    """No progress at all."""

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class Runner:
    """What every cell needs: settings, the store (None keeps nothing), the progress; `fresh` measures everything anew."""

    settings: Settings
    zoo: Zoo
    store: Store | None
    progress: Progress
    fresh: bool
    on_failure: Callable[[str], None]
    samples: Path | None = None

    def cell(self, identity: dict[str, Any], steps: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result of a cell, or the one measured now, which is stored at once."""
        if self.store is not None and not self.fresh:
            known = self.store.get(identity)
            if known is not None:
                self.progress.advance(steps)
                return known
        result = measure()
        if self.store is not None:
            self.store.put(identity, result)
        return result


def compare(
    settings: Settings,
    store: Store | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    on_failure: Callable[[str], None] = lambda text: None,
    samples: Path | None = None,
) -> Comparison:
    """Run a comparison. Cells that `store` has are not run again, unless `fresh`.

    Whatever the settings name wrongly raises UserError before anything runs. A method that fails while it runs becomes a
    failed row; `on_failure` is given its traceback. Every single answer is written to the folder `samples` as well.
    """
    began = time.monotonic()
    zoo = load_zoo()
    methods = methods_of(settings, zoo)
    check_budgets(settings.amounts, settings.convention)
    targets = [Target.parse(text, settings.convention) for text in settings.price]
    tasks = tasks_of(settings.tasks, zoo, settings.frames)
    runner = Runner(settings, zoo, store, progress or Silent(), fresh, on_failure, samples)
    runner.progress.say("loading models")
    plans = plan_sections(settings, tasks)
    for plan in plans:
        runner.progress.expect(len(methods) * plan.steps(settings) * len(settings.amounts or settings.retention or [""]))
    sections = [run_section(plan, methods, targets, runner) for plan in plans]
    return Comparison(
        sections=sections,
        settings=settings.model_dump(),
        environment=environment(plans[-1].checkpoint.model),
        seconds=time.monotonic() - began,
        notes=left_out(settings, tasks, plans) + _notes(sections, plans, targets),
    )


def _notes(sections: Sequence[Section], plans: Sequence[SectionPlan], targets: Sequence[Target]) -> list[str]:
    """What a reader must know about all rows."""
    notes = [f"Prices: convention {target.convention}{target.times}." for target in targets[:1]]
    notes += [
        f"No price for {plan.kind}s on {target.text}: the registry has no default size."
        for plan in plans
        for target in targets
        if not target.takes(plan.kind)
    ]
    notes += [f"{knows(plan.title)}" for plan in plans if knows(plan.title) and any(_is_own(task) for task in plan.tasks)]
    for section in sections:
        notes += section.warnings
    spreads = [row.timing.prefill_ms for section in sections for row in section.rows if row.timing]
    if any(one.high - one.low > BUSY * one.median for one in spreads):
        notes.append("The times spread widely: the machine was busy. Trust no ratio of this run; repeat it with --fresh.")
    return notes


def _is_own(task: Task) -> bool:
    return isinstance(task, LocalTask)


def run_section(plan: SectionPlan, methods: Sequence[tuple[str, Pipeline]], targets: Sequence[Target], runner: Runner) -> Section:
    """Measure all methods on one model and one kind of input."""
    settings, checkpoint = runner.settings, plan.checkpoint
    questions = {task.name: questions_of(task, settings, plan) for task in plan.tasks}
    for question in (question for asked in questions.values() for question in asked):
        checkpoint.check(question)
    candidates = _candidates(plan, methods, questions, runner)
    measured = [Measured(candidate) for candidate in candidates]
    for task, asked in questions.items():
        for entry in measured:
            if entry.candidate.status == "ok":
                with _failures(entry.candidate, f"task {task}", runner):
                    runner.progress.say(f"{plan.title}: {entry.candidate.label} on {task}")
                    entry.cells[task] = accuracy(checkpoint, entry.candidate.pipeline, task, asked, runner)
    if runner.samples is not None:
        write_samples(runner.samples, plan.title, questions, measured)
    timed_task = plan.tasks[0].name
    if settings.timing:
        _time(plan, measured, timed_task, questions[timed_task][0], runner)
    rows = rows_of(measured, plan.kind, targets)
    terms, equal = terms_of(settings, rows)
    return Section(
        model=plan.title,
        kind=plan.kind,
        tasks=list(questions),
        rows=rows,
        terms=terms,
        warnings=warnings_of(plan.tasks, measured, rows),
        equal_cost=equal,
        questions=sum(len(asked) for asked in questions.values()),
        chance={task.name: task.chance for task in plan.tasks if task.chance},
        timed_on=f"Timed on one question of '{timed_task}', batch size 1." if settings.timing else "",
        published=published_of(runner.zoo, [row.method for row in rows], plan.kind) if settings.with_published else [],
    )


def accuracy(checkpoint: Checkpoint, method: Pipeline, task: str, asked: Questions, runner: Runner) -> dict[str, Any]:
    """One accuracy cell, from the store or measured."""
    size, longest = runner.settings.batch_size, runner.settings.max_new_tokens
    return runner.cell(
        accuracy_identity(checkpoint, method, task, asked, runner.settings.seed, size, longest),
        len(asked),
        lambda: cells.accuracy_cell(checkpoint, method, asked, size, runner.progress.advance, longest),
    )


def questions_of(task: Task, settings: Settings, plan: SectionPlan) -> Questions:
    """A task's questions; raises UserError where there are none, or the model cannot see one's video."""
    asked = Questions(task.questions(settings.limit, settings.seed), task)
    if not asked:
        raise UserError(f"Task '{task.name}' has no questions. Give it some, or leave it out of --tasks.")
    unseen = next((question for question in asked if question.video), None) if not plan.takes_videos else None
    if unseen is not None:
        raise UserError(f"Question '{unseen.id}' is about a video, which '{plan.title}' does not take. Choose another --model.")
    return asked


def _candidates(
    plan: SectionPlan,
    methods: Sequence[tuple[str, Pipeline]],
    questions: dict[str, Questions],
    runner: Runner,
) -> list[Candidate]:
    settings = runner.settings
    if settings.retention:
        return at_retentions(methods, settings.retention, plan.checkpoint.layers, runner.on_failure)
    if settings.as_published:
        return as_published(methods)
    none_text, none = next((text, method) for text, method in methods if method.name == "none")
    task, asked = next(iter(questions.items()))
    unreduced = accuracy(plan.checkpoint, none, task, asked, runner)
    candidates = [Candidate(none_text, none)]
    for amount in settings.amounts:
        calibrate = partial(calibration, plan, task, asked, runner)
        budget = budget_of(amount, plan, unreduced, calibrate, settings.convention)
        candidates += within(methods, budget, runner.on_failure)
    return candidates


def calibration(plan: SectionPlan, task: str, asked: Questions, runner: Runner, method: Pipeline) -> dict[str, Any]:
    """What a data-dependent method keeps on the first questions; kept in the store as a cell of its own kind."""
    size, few = runner.settings.batch_size, Questions(asked[:CALIBRATION])
    identity = accuracy_identity(plan.checkpoint, method, task, few, runner.settings.seed, size, runner.settings.max_new_tokens)
    return runner.cell({**identity, "kind": "calibration"}, 0, lambda: cells.accuracy_cell(plan.checkpoint, method, few, size))


def _time(plan: SectionPlan, measured: Sequence[Measured], task: str, question: Question, runner: Runner) -> None:
    """Time all that did not fail, together; one that fails now is left out and the others are timed again."""
    settings = runner.settings
    while True:
        running = [entry for entry in measured if entry.candidate.status == "ok"]
        methods = {str(entry.candidate.pipeline): entry.candidate.pipeline for entry in running}
        if not methods:
            return
        runner.progress.say(f"{plan.title}: timing")
        identity = timing_identity(plan.checkpoint, methods, task, question, settings.rounds, settings.new_tokens)
        measure = partial(
            cells.timing_cell, plan.checkpoint, methods, question, settings.rounds, settings.new_tokens,
            partial(_advance, runner, len(methods)),
        )  # fmt: skip
        try:
            result = runner.cell(identity, settings.rounds * len(methods), measure)
        except MethodError as error:
            for entry in running:
                if str(entry.candidate.method) == error.method:
                    with _failures(entry.candidate, "timing", runner):
                        raise error.__cause__ or error from None
            continue
        timed = cells.read_timing(result)
        for entry in running:
            entry.timed = timed[str(entry.candidate.pipeline)]
        return


def _advance(runner: Runner, steps: int, done: int) -> None:
    runner.progress.advance(steps)


@contextlib.contextmanager
def _failures(candidate: Candidate, where: str, runner: Runner) -> Any:
    """Turn what a method raises into a failed row. Ctrl-C, and errors of the store, go through."""
    try:
        with kept_from_ending():
            yield
    except StoreError:
        raise
    except UnsupportedError as error:
        candidate.status, candidate.note = "refused", str(error)
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = lines[0] if lines else "no message"
        kind = "" if isinstance(error, (UserError, PluginError)) else f"{type(error).__name__}: "
        candidate.status, candidate.note = "failed", f"{kind}{said} ({where})"
        runner.on_failure(traceback.format_exc())
