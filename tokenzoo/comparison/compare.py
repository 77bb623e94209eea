"""Compare methods on the same questions, the same model and the same clock; the result is rows.

from tokenzoo.comparison.compare import compare
from tokenzoo.comparison.settings import Settings
comparison = compare(Settings(methods="aim,fastv", limit=100))
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenzoo.bench.local import LocalTask
from tokenzoo.bench.task import Task
from tokenzoo.bench.timing import MethodError
from tokenzoo.comparison import cells
from tokenzoo.comparison.budgets import CALIBRATION, budget_of
from tokenzoo.comparison.candidates import Candidate, as_published, at_retentions, within
from tokenzoo.comparison.code import benchmark_code
from tokenzoo.comparison.identity import Questions, accuracy_identity, environment_of, timing_identity
from tokenzoo.comparison.plan import SectionPlan, plan_of
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.comparison.samples import write_samples
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store, StoreError
from tokenzoo.comparison.summary import Measured, published_of, rows_of, terms_of, warnings_of
from tokenzoo.comparison.work import AccuracyWork, BenchmarkWork, TimingWork, Work, WorkersLostError
from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.lmms.benchmark import Benchmark
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint, knows
from tokenzoo.models.question import Question
from tokenzoo.zoo.errors import PluginError, kept_from_ending
from tokenzoo.zoo.plugins import Zoo

if TYPE_CHECKING:
    from tokenzoo.comparison.cluster import Cluster

#: An interquartile range of prefill above this share of the median tells of a busy machine.
BUSY = 0.3
BUSY_SAID = f"Times of a method vary by more than {100 * BUSY:.0f} % from round to round: their ratios are unreliable."


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
    """What every cell needs: settings, the store (None keeps nothing), the progress; `fresh` measures everything anew.

    With a `cluster`, work is done by its workers, else in this process.
    """

    settings: Settings
    zoo: Zoo
    store: Store | None
    progress: Progress
    fresh: bool
    on_failure: Callable[[str], None]
    samples: Path | None = None
    cluster: Cluster | None = None

    def cell(self, identity: dict[str, Any], steps: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result of a cell, or the one measured now, which is stored at once."""
        known = self._known(identity)
        if known is not None:
            self.progress.advance(steps)
            return known
        result = measure()
        if self.store is not None:
            self.store.put(identity, result)
        return result

    def ahead(self, work: Work, checkpoint: Checkpoint) -> None:
        """Let workers begin what will be asked for; without any there is nothing to begin."""
        if self.cluster is not None and self._known(work.identity) is None:
            self.cluster.submit(work, checkpoint)

    def done(self, work: Work, checkpoint: Checkpoint) -> dict[str, Any]:
        """The cell that a work makes: the stored one, or the one made now, here or by the workers."""
        if self.cluster is None:
            return self.cell(work.identity, work.steps, lambda: work.join([work.do(checkpoint, self.progress.advance)]))
        known = self._known(work.identity)
        if known is not None and not self.cluster.has(work):
            self.progress.advance(work.steps)
            return known
        return self.cluster.result(work, checkpoint)

    def _known(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        return self.store.get(identity) if self.store is not None and not self.fresh else None


def compare(
    settings: Settings,
    store: Store | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    on_failure: Callable[[str], None] = lambda text: None,
    samples: Path | None = None,
    cluster: Cluster | None = None,
) -> Comparison:
    """Run a comparison. Cells that `store` has are not run again, unless `fresh`.

    Whatever the settings name wrongly raises UserError before anything runs. A method that fails while it runs becomes a
    failed row; `on_failure` is given its traceback. Every single answer is written to the folder `samples` as well.
    The workers of a `cluster` do what is to be measured; the table is the same as without one, but for the times.
    """
    began = time.monotonic()
    progress = progress or Silent()
    models = None if cluster is None else cluster.open(settings, store, progress.advance, fresh)
    plan = plan_of(settings, online=True, models=models)
    runner = Runner(settings, plan.zoo, store, progress, fresh, on_failure, samples, cluster)
    runner.progress.say("loading models")
    for part in plan.sections:
        runner.progress.expect(plan.rows * part.steps(settings))
    begun: Iterable[BegunSection] = (begin_section(part, plan.methods, runner) for part in plan.sections)
    if cluster is not None:
        begun = list(begun)  # every section's work is queued before the first one is waited for
    sections = [finish_section(section, plan.targets, runner) for section in begun]
    busy = _was_busy(sections)
    return Comparison(
        sections=sections,
        settings=settings.model_dump(),
        environment=environment_of(plan.sections[-1].checkpoint),
        seconds=time.monotonic() - began,
        notes=_notes(plan.sections, plan.targets) + [BUSY_SAID] * busy,
        hints=plan.left_out + ["Repeat it on a quiet machine with --fresh."] * busy,
    )


def _notes(plans: Sequence[SectionPlan], targets: Sequence[Target]) -> list[str]:
    """What a reader must know about all rows."""
    notes = [f"Prices: convention {target.convention}{target.times}." for target in targets[:1]]
    notes += [
        f"No price for {plan.kind}s on {target.text}: the registry has no default size."
        for plan in plans
        for target in targets
        if not target.takes(plan.kind)
    ]
    return notes + [knows(plan.title) for plan in plans if knows(plan.title) and any(_is_own(task) for task in plan.tasks)]


def _was_busy(sections: Sequence[Section]) -> bool:
    spreads = [row.timing.prefill_ms for section in sections for row in section.rows if row.timing]
    return any(one.high - one.low > BUSY * one.median for one in spreads)


def _is_own(task: Task) -> bool:
    return isinstance(task, LocalTask)


@dataclass
class BegunSection:
    """A section whose questions are read and whose methods are set: what is left is to answer and to time."""

    plan: SectionPlan
    questions: dict[str, Questions]
    measured: list[Measured]


def begin_section(plan: SectionPlan, methods: Sequence[tuple[str, Pipeline]], runner: Runner) -> BegunSection:
    """Read the questions and set the methods to what they may cost; workers begin to answer."""
    settings, checkpoint = runner.settings, plan.checkpoint
    questions = {task.name: questions_of(task, settings, plan) for task in plan.tasks}
    for question in (question for asked in questions.values() for question in asked):
        checkpoint.check(question)
    measured = [Measured(candidate) for candidate in _candidates(plan, methods, questions, runner)]
    for task, asked in questions.items():
        for entry in measured:
            if entry.candidate.status == "ok":
                runner.ahead(accuracy_work(checkpoint, entry.candidate.pipeline, task, asked, settings), checkpoint)
    return BegunSection(plan, questions, measured)


def finish_section(section: BegunSection, targets: Sequence[Target], runner: Runner) -> Section:
    """Measure all methods on one model and one kind of input."""
    plan, questions, measured = section.plan, section.questions, section.measured
    settings, checkpoint = runner.settings, plan.checkpoint
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
        questions=sum(asked.total for asked in questions.values()),
        chance={task.name: task.chance for task in plan.tasks if task.chance},
        timed_on=_timed_on(timed_task, measured) if settings.timing else "",
        published=published_of(runner.zoo, [row.method for row in rows], plan.kind) if settings.with_published else [],
    )


def _timed_on(task: str, measured: Sequence[Measured]) -> str:
    hosts = dict.fromkeys(entry.timed.host for entry in measured if entry.timed and entry.timed.host)
    where = f", on {', '.join(hosts)}" if hosts else ""
    return f"Timed on one question of '{task}', batch size 1{where}."


def accuracy_work(checkpoint: Checkpoint, method: Pipeline, task: str, asked: Questions, settings: Settings) -> Work:
    """The work that makes an accuracy cell."""
    size, longest = settings.batch_size, settings.max_new_tokens
    if asked.benchmark is None:
        identity = accuracy_identity(checkpoint, method, task, asked, settings.seed, size, longest)
        return AccuracyWork(checkpoint.name, identity, len(asked), str(method), asked, size, longest)
    identity = accuracy_identity(checkpoint, method, task, asked, 0, size, 0)
    identity |= {"questions": asked.total, "limit": settings.limit}
    identity |= {"benchmark": asked.benchmark.identity(), "benchmark_code": benchmark_code()}
    spans = [(name, 0, count) for name, count in asked.benchmark.counts(settings.limit).items()]
    return BenchmarkWork(checkpoint.name, identity, asked.total, str(method), task, asked.benchmark.frames, size, spans)


def accuracy(checkpoint: Checkpoint, method: Pipeline, task: str, asked: Questions, runner: Runner) -> dict[str, Any]:
    """One accuracy cell, from the store or measured."""
    return runner.done(accuracy_work(checkpoint, method, task, asked, runner.settings), checkpoint)


def questions_of(task: Task, settings: Settings, plan: SectionPlan) -> Questions:
    """A task's questions; raises UserError where there are none, or the model cannot see one's video."""
    if isinstance(task, Benchmark):
        asked = Questions(task.questions(min(settings.limit, CALIBRATION), settings.seed), task)
        asked.total = sum(task.counts(settings.limit).values())
    else:
        asked = Questions(task.questions(settings.limit, settings.seed), task)
    if not asked:
        raise UserError(f"Task '{task.name}' has no questions. Give it some, or leave it out of --tasks.")
    for question in asked:
        plan.check(question)
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
    for task, asked in questions.items():
        runner.ahead(accuracy_work(plan.checkpoint, none, task, asked, settings), plan.checkpoint)
    task, asked = next(iter(questions.items()))
    unreduced = accuracy(plan.checkpoint, none, task, asked, runner)
    candidates = [Candidate(none_text, none)]
    few = cache(lambda: Questions(asked[:CALIBRATION]))  # their pictures are read once, and only where a method needs them

    def calibrate(method: Pipeline) -> dict[str, Any]:
        return calibration(plan, task, few(), runner, method)

    for amount in settings.amounts:
        budget = budget_of(amount, plan, unreduced, calibrate, settings.convention)
        candidates += within(methods, budget, runner.on_failure)
    return candidates


def calibration(plan: SectionPlan, task: str, asked: Questions, runner: Runner, method: Pipeline) -> dict[str, Any]:
    """What a data-dependent method keeps on a few questions; kept in the store as a cell of its own kind."""
    work = accuracy_work(plan.checkpoint, method, task, asked, runner.settings)
    return runner.done(replace(work, identity={**work.identity, "kind": "calibration"}, steps=0), plan.checkpoint)


def _time(plan: SectionPlan, measured: Sequence[Measured], task: str, question: Question, runner: Runner) -> None:
    """Time all that did not fail, together; one that fails now is left out and the others are timed again."""
    settings, checkpoint = runner.settings, plan.checkpoint
    while True:
        running = [entry for entry in measured if entry.candidate.status == "ok"]
        methods = {str(entry.candidate.pipeline): entry.candidate.pipeline for entry in running}
        if not methods:
            return
        runner.progress.say(f"{plan.title}: timing")
        identity = timing_identity(checkpoint, methods, task, question, settings.rounds, settings.new_tokens)
        steps = settings.rounds * len(methods)
        work = TimingWork(checkpoint.name, identity, steps, list(methods), question, settings.rounds, settings.new_tokens)
        try:
            result = runner.done(work, checkpoint)
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


@contextlib.contextmanager
def _failures(candidate: Candidate, where: str, runner: Runner) -> Any:
    """Turn what a method raises into a failed row. Ctrl-C, and errors of the store and of the workers, go through."""
    try:
        with kept_from_ending():
            yield
    except (StoreError, WorkersLostError):
        raise
    except UnsupportedError as error:
        candidate.status, candidate.note = "refused", str(error)
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = lines[0] if lines else "no message"
        kind = "" if isinstance(error, (UserError, PluginError)) else f"{type(error).__name__}: "
        candidate.status, candidate.note = "failed", f"{kind}{said} ({where})"
        runner.on_failure(traceback.format_exc())
