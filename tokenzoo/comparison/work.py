"""Work: what makes one cell, as plain data, so that it can be done in this process or on another machine.

Large work is cut into pieces, which are done in any order and joined in theirs. A whole has one piece where it is done here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from tokenzoo.bench.evaluate import batches
from tokenzoo.comparison import cells
from tokenzoo.comparison.identity import code_facts, environment_of, model_facts
from tokenzoo.errors import FailedError
from tokenzoo.lmms.benchmark import answer, benchmark_of, scored
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.trace import Trace
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.question import Question
from tokenzoo.zoo.plugins import load_zoo

Advance = Callable[[int], None]


class WorkersLostError(FailedError):
    """There is nobody to do the work: no fault of a method."""


@dataclass(frozen=True)
class Work(ABC):
    """Something to do with one model. `identity` is that of the cell it makes, empty for what no store keeps.

    :param steps: steps of progress
    """

    model: str
    identity: dict[str, Any]
    steps: int = 0
    #: Whether nothing else may run on the machine meanwhile.
    alone: ClassVar[bool] = False

    @abstractmethod
    def do(self, checkpoint: Checkpoint, advance: Advance) -> dict[str, Any]:
        """Do it and return plain data; `advance` is told of steps."""

    def pieces(self, checkpoint: Checkpoint, size: int) -> list[Work]:
        """The same in parts of about `size` questions, whose results `join` makes into the cell."""
        return [self]

    def join(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The cell that the pieces' results make."""
        (result,) = results
        return result

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise FailedError where this machine would measure something else than the identity says."""
        if self.identity:
            specification = self.identity["method"]
            here = {**model_facts(checkpoint), **code_facts(self.methods())}
            if self.alone:
                here["environment"] = environment_of(checkpoint)
            other = [name for name, value in here.items() if self.identity[name] != value]
            if other:
                raise FailedError(f"Other {', '.join(other)} on this machine than where '{specification}' was planned.")

    def methods(self) -> list[Pipeline]:
        """The methods that are run."""
        return []


@dataclass(frozen=True)
class AccuracyWork(Work):
    """One method's answers to one task's questions."""

    method: str = ""
    questions: Sequence[Question] = ()
    batch_size: int = 1
    max_new_tokens: int = 1

    def methods(self) -> list[Pipeline]:
        return [load_zoo().build(self.method)]

    def do(self, checkpoint: Checkpoint, advance: Advance) -> dict[str, Any]:
        (method,) = self.methods()
        return cells.accuracy_part(checkpoint, method, self.questions, self.batch_size, advance, self.max_new_tokens)

    def pieces(self, checkpoint: Checkpoint, size: int) -> list[Work]:
        """Cut between the batches of the whole, so that every question has the same neighbours as without a cut."""
        runs: list[list[Question]] = [[]]
        for batch in batches(checkpoint, self.questions, self.batch_size):
            if runs[-1] and len(runs[-1]) + len(batch) > size:
                runs.append([])
            runs[-1] += batch
        return [replace(self, questions=run, steps=len(run)) for run in runs]

    def join(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return cells.accuracy_cell(results)


@dataclass(frozen=True)
class BenchmarkWork(Work):
    """One method on one benchmark of lmms-eval; `spans` are the questions of each of its tasks, as first and last but one."""

    method: str = ""
    benchmark: str = ""
    frames: int = 1
    batch_size: int = 1
    spans: Sequence[tuple[str, int, int]] = ()

    def methods(self) -> list[Pipeline]:
        return [load_zoo().build(self.method)]

    def do(self, checkpoint: Checkpoint, advance: Advance) -> dict[str, Any]:
        (method,) = self.methods()
        recorder = cells.Recorder(checkpoint, method)

        def watch(trace: Trace, samples: int) -> None:
            recorder.add(trace)
            advance(samples)

        benchmark = benchmark_of(self.benchmark, self.frames)
        samples = [
            [task, answer(benchmark, task, (start, stop), checkpoint, method, self.batch_size, watch)]
            for task, start, stop in self.spans
        ]
        return {"samples": samples, **recorder.part()}

    def pieces(self, checkpoint: Checkpoint, size: int) -> list[Work]:
        """Cut at multiples of whole batches; questions have the same neighbours then, unless their pictures' counts differ."""
        step = max(size // self.batch_size, 1) * self.batch_size
        cut = [(task, first, min(first + step, stop)) for task, start, stop in self.spans for first in range(start, stop, step)]
        return [replace(self, spans=[span], steps=span[2] - span[1]) for span in cut]

    def join(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        samples: dict[str, list[dict[str, Any]]] = {task: [] for task, _, _ in self.spans}
        for task, told in (entry for result in results for entry in result["samples"]):
            samples[task] += told
        cell = scored(benchmark_of(self.benchmark, self.frames), samples)
        return {**cells.accuracy_cell([{**result, "answers": []} for result in results]), **cell}


@dataclass(frozen=True)
class TimingWork(Work):
    """One interleaved timing of several methods on one question."""

    specifications: Sequence[str] = ()
    question: Question = field(default_factory=lambda: Question("", ""))
    rounds: int = 1
    new_tokens: int = 2
    alone: ClassVar[bool] = True

    def methods(self) -> list[Pipeline]:
        return [load_zoo().build(text) for text in self.specifications]

    def do(self, checkpoint: Checkpoint, advance: Advance) -> dict[str, Any]:
        methods = dict(zip(self.specifications, self.methods(), strict=True))
        on_round = partial(_advanced, advance, len(methods))
        return cells.timing_cell(checkpoint, methods, self.question, self.rounds, self.new_tokens, on_round)


def _advanced(advance: Advance, steps: int, _done: int) -> None:
    advance(steps)


@dataclass(frozen=True)
class Look(Work):
    """What a process that has the model tells one that has not."""

    def do(self, checkpoint: Checkpoint, advance: Advance) -> dict[str, Any]:
        return {"model": model_facts(checkpoint), "environment": environment_of(checkpoint)}


def piece_identity(whole: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The identity of the piece of a cell that answers questions `start` to `stop`."""
    return {**whole, "kind": "piece", "piece": [start, stop]}
