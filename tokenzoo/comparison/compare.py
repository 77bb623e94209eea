"""Compare methods on the same questions, the same model and the same clock; the result is rows.

from tokenzoo.comparison.compare import compare
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
from typing import Any, Protocol

from tokenzoo.bench.task import Task
from tokenzoo.bench.timing import MethodError, environment
from tokenzoo.comparison import cells
from tokenzoo.comparison.budgets import budget_of, check_budget
from tokenzoo.comparison.candidates import Candidate, at_retentions, matched, methods_of
from tokenzoo.comparison.identity import Questions, accuracy_identity, timing_identity
from tokenzoo.comparison.plan import SectionPlan, left_out, plan_sections, tasks_of
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store, StoreError
from tokenzoo.comparison.summary import Measured, published_of, rows_of
from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint
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
) -> Comparison:
    """Run a comparison. Cells that `store` has are not run again, unless `fresh`.

    Whatever the settings name wrongly raises UserError before anything runs. A method that fails while it runs becomes a
    failed row; `on_failure` is given its traceback.
    """
    began = time.monotonic()
    zoo = load_zoo()
    methods = methods_of(settings, zoo)
    targets = [Target.parse(text, settings.convention) for text in settings.price]
    tasks = tasks_of(settings.tasks, zoo)
    runner = Runner(settings, zoo, store, progress or Silent(), fresh, on_failure)
    runner.progress.say("loading models")
    plans = plan_sections(settings, tasks)
    check_budget(settings, plans, targets)
    for plan in plans:
        runner.progress.expect(len(methods) * plan.steps(settings))
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
    spreads = [row.timing.prefill_ms for section in sections for row in section.rows if row.timing]
    if any(one.high - one.low > BUSY * one.median for one in spreads):
        notes.append("The times spread widely: the machine was busy. Trust no ratio of this run; repeat it with --fresh.")
    return notes


def run_section(plan: SectionPlan, methods: Sequence[tuple[str, Pipeline]], targets: Sequence[Target], runner: Runner) -> Section:
    """Measure all methods on one model and one kind of input."""
    settings, checkpoint = runner.settings, plan.checkpoint
    questions = {task.name: questions_of(task, settings, plan) for task in plan.tasks}
    candidates = _candidates(plan, methods, targets, questions, runner)
    measured = [Measured(candidate) for candidate in candidates]
    for task, asked in questions.items():
        for entry in measured:
            if entry.candidate.status == "ok":
                with _failures(entry.candidate, f"task {task}", runner):
                    runner.progress.say(f"{plan.title}: {entry.candidate.label} on {task}")
                    entry.cells[task] = accuracy(checkpoint, entry.candidate.pipeline, task, asked, runner)
    timed_task = plan.tasks[0].name
    if settings.timing:
        _time(plan, measured, timed_task, questions[timed_task][0], runner)
    rows = rows_of(measured, plan.kind, targets)
    return Section(
        model=plan.title,
        kind=plan.kind,
        tasks=list(questions),
        rows=rows,
        questions=sum(len(asked) for asked in questions.values()),
        chance={task.name: task.chance for task in plan.tasks if task.chance},
        timed_on=f"Timed on one question of '{timed_task}', batch size 1." if settings.timing else "",
        published=published_of(runner.zoo, [row.method for row in rows], plan.kind) if settings.with_published else [],
    )


def accuracy(checkpoint: Checkpoint, method: Pipeline, task: str, asked: Questions, runner: Runner) -> dict[str, Any]:
    """One accuracy cell, from the store or measured."""
    size = runner.settings.batch_size
    return runner.cell(
        accuracy_identity(checkpoint, method, task, asked, runner.settings.seed, size),
        len(asked),
        lambda: cells.accuracy_cell(checkpoint, method, asked, size, runner.progress.advance),
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
    targets: Sequence[Target],
    questions: dict[str, Questions],
    runner: Runner,
) -> list[Candidate]:
    settings = runner.settings
    if settings.retention:
        return at_retentions(methods, settings.retention, runner.on_failure)
    if settings.match_flops or settings.match_tokens or settings.match_prefill_ms:
        none = next(method for _, method in methods if method.name == "none")
        task, asked = next(iter(questions.items()))
        unreduced = accuracy(plan.checkpoint, none, task, asked, runner)
        return matched(methods, budget_of(settings, plan, targets, unreduced, asked), runner.on_failure)
    return [Candidate(text, method) for text, method in methods]


def _time(plan: SectionPlan, measured: Sequence[Measured], task: str, question: Question, runner: Runner) -> None:
    """Time all that did not fail, together; one that fails now is left out and the others are timed again."""
    settings = runner.settings
    while True:
        running = {entry.candidate.label: entry for entry in measured if entry.candidate.status == "ok"}
        methods = {label: entry.candidate.pipeline for label, entry in running.items()}
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
            with _failures(running[error.method].candidate, "timing", runner):
                raise error.__cause__ or error from None
            continue
        for label, timed in cells.read_timing(result).items():
            running[label].timed = timed
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
