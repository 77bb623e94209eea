"""A benchmark of lmms-eval as a task: its questions, its scores of answers, and the metrics that it makes of them.

lmms-eval's task objects build the requests, filter and score the answers and aggregate the scores. What is ours is the order:
a part of a benchmark can be answered by itself, and parts make the same metrics as the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from huggingface_hub.constants import HF_HOME

from tokenzoo.bench.task import Prediction, Task
from tokenzoo.errors import UserError
from tokenzoo.lmms.known import PREFIX, known_benchmarks
from tokenzoo.models.question import Question

if TYPE_CHECKING:
    from tokenzoo.method.pipeline import Pipeline
    from tokenzoo.method.trace import Trace
    from tokenzoo.models.checkpoint import Checkpoint

#: Bootstrap samples of a standard error, and their seed.
RESAMPLES, SEED = 200, 0
#: A metric that is no number: answers for a server. lmms-eval would send EgoSchema's there; nothing is sent from here.
SUBMISSION = "submission"
#: Where a benchmark's record of one answer says what it counts, and which two entries are equal where it is right.
SCORES = ("score", "correct")
PAIRS = (("pred_answer", "answer"), ("pred_id", "answer_id"), ("pred", "ground_truth"))


class Benchmark(Task):
    """`lmms:NAME`, a benchmark or group that lmms-eval knows, or `lmms:DIR/NAME.yaml`, a task file of your own.

    :param frames: frames taken of each video
    :raises UserError: where lmms-eval is missing, or knows no such benchmark
    """

    def __init__(self, name: str, frames: int = 8) -> None:
        self.name, self.frames = name, frames
        self.task_name, self.folder = _located(name.removeprefix(PREFIX))
        self.known = known_benchmarks().get(self.task_name) if self.folder is None else None
        if self.known is None:
            _check(self.task_name, self.folder)

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """lmms-eval's task objects by name, a group's members for a group; loads, or downloads, the data."""
        index = manager(self.folder)
        from lmms_eval.tasks import get_task_dict

        try:
            with quiet():
                leaves = dict(_flat(get_task_dict([self.task_name], index, "simple")))
                for task in leaves.values():
                    task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)
                return leaves
        except Exception as error:
            raise UserError(f"Cannot load the benchmark '{self.task_name}': {_line(error)}") from error

    @cached_property
    def modality(self) -> Literal["image", "video"]:  # type: ignore[override]
        if self.known is not None:
            return self.known.kind
        return "video" if next(self.questions(1)).video else "image"

    @property
    def metric_name(self) -> str:
        """The metric that stands in a table."""
        if self.known is not None:
            return self.known.metric
        return next(iter(next(iter(self.leaves.values())).aggregation()))

    def counts(self, limit: int) -> dict[str, int]:
        """How many questions are asked with this limit: as lmms-eval does, so many of each member of a group."""
        return {name: min(limit, len(task.eval_docs)) for name, task in self.leaves.items()}

    def questions(self, limit: int, seed: int = 0) -> Iterator[Question]:
        """The first questions, to time and to set methods on; the right answer is lmms-eval's business and is left out."""
        leaves = self.leaves
        from tokenzoo.lmms.model import question_of

        for name, task in leaves.items():
            for index in range(min(limit, len(task.eval_docs))):
                document = task.eval_docs[index]
                with quiet():
                    prompt, shown = task.doc_to_text(document), task.doc_to_visual(document)
                yield question_of(f"{name}/{index}", prompt, shown or (), self.frames)
                limit -= 1

    def identity(self) -> dict[str, Any]:
        """What scores depend on besides model and method: lmms-eval, the tasks' configs and the data."""
        from importlib.metadata import version

        tasks = {}
        for name, task in self.leaves.items():
            config = {key: value for key, value in task.dump_config().items() if not callable(value)}
            data = {split: str(getattr(one, "_fingerprint", len(one))) for split, one in dict(task.dataset).items()}
            tasks[name] = [json.loads(json.dumps(config, default=_code)), data]
        return {"lmms_eval": version("lmms-eval"), "tasks": tasks, "frames": self.frames}


@dataclass(frozen=True)
class Metric:
    """One of a benchmark's metrics on its own scale, with a bootstrap standard error (None where none can be made)."""

    value: float
    error: float | None


@cache
def benchmark_of(name: str, frames: int) -> Benchmark:
    """The benchmark, with its data loaded once in a process."""
    return Benchmark(name, frames)


def answer(
    benchmark: Benchmark,
    leaf: str,
    span: tuple[int, int],
    checkpoint: Checkpoint,
    method: Pipeline,
    batch_size: int,
    watch: Callable[[Trace, int], None],
) -> list[dict[str, Any]]:
    """Ask the questions `span` of one task: for each its prompt, answer and expected answer, and what metrics make of it."""
    from tokenzoo.lmms.model import Tokenzoo

    task = benchmark.leaves[leaf]
    start, stop = span
    model = Tokenzoo(method=method, batch_size=batch_size, frames=benchmark.frames, checkpoint=checkpoint, watch=watch)
    model.task_dict[leaf] = task.dataset
    with quiet():
        task.build_all_requests(limit=stop - start, offset=start)
        asked: dict[str, list[Any]] = {}
        for request in task.instances:
            asked.setdefault(request.request_type, []).extend([request] * request.repeats)
        for kind, requests in asked.items():
            for request, told in zip(requests, getattr(model, kind)(requests), strict=True):
                request.resps.append(told)
        task.apply_filters()
        return list(_samples(task, start, stop))


def _samples(task: Any, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Each document's answer, scored by the task."""
    of_document: dict[Any, list[Any]] = {}
    for request in sorted(task.instances, key=lambda request: request.idx):
        of_document.setdefault(request.doc_id, []).append(request)
    for number, document in task.doc_iterator(limit=stop - start, offset=start):
        requests = of_document[number]
        chosen = next(iter(requests[0].filtered_resps))
        told = [request.filtered_resps[chosen] for request in requests]
        metrics = task.process_results(document, told)
        yield {
            "number": number,
            "prompt": next((one for one in requests[0].args if isinstance(one, str)), ""),
            "answer": str(told[0]).strip(),
            "expected": str(task.doc_to_target(document)),
            "metrics": json.loads(
                json.dumps({name: metrics[name] for name in task.aggregation() if name in metrics}, default=str)
            ),
        }


def scored(benchmark: Benchmark, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The cell that all samples make, by task: answers with their scores, and the metrics of the whole."""
    answers = [
        asdict(_prediction(name, sample, [benchmark.metric_name, *benchmark.leaves[name].aggregation()]))
        for name, listed in samples.items()
        for sample in listed
    ]
    return {
        "answers": answers,
        "samples": [{name: sample[name] for name in ("prompt", "metrics")} for listed in samples.values() for sample in listed],
        "metric": benchmark.metric_name,
        "metrics": {name: asdict(one) for name, one in _metrics(benchmark, samples).items()},
        "scored": all(answer["score"] is not None for answer in answers),
    }


def _prediction(task: str, sample: dict[str, Any], metrics: Sequence[str]) -> Prediction:
    score = score_of(next((sample["metrics"][name] for name in metrics if name in sample["metrics"]), None))
    return Prediction(f"{task}/{sample['number']}", sample["answer"], score == 1, sample["expected"], score=score)


def score_of(told: Any) -> float | None:
    """What a benchmark gives one answer, 0 to 1: a number, or a record that has it; None where it says none."""
    if isinstance(told, dict):
        right = next((told[answer] == told[expected] for answer, expected in PAIRS if answer in told and expected in told), None)
        told = next((told[name] for name in SCORES if name in told), right)
    if isinstance(told, (bool, int, float)) and 0 <= told <= 1:
        return float(told)
    return None


def _metrics(benchmark: Benchmark, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Metric]:
    """The whole benchmark's metrics; a group's are the means of its tasks', each as often as it has questions."""
    parts: dict[str, list[tuple[int, Metric]]] = {}
    for name, task in benchmark.leaves.items():
        for metric, aggregate in task.aggregation().items():
            items = [sample["metrics"][metric] for sample in samples[name] if metric in sample["metrics"]]
            if items and metric != SUBMISSION:
                found = _aggregated(aggregate, items)
                if found is not None:
                    parts.setdefault(metric, []).append((len(items), found))
    metrics = {}
    for metric, listed in parts.items():
        total = sum(count for count, _ in listed)
        errors = [(count / total * one.error) ** 2 for count, one in listed if one.error is not None]
        value = listed[0][1].value if len(listed) == 1 else sum(count * one.value for count, one in listed) / total
        metrics[metric] = Metric(value, math.sqrt(sum(errors)) if len(errors) == len(listed) else None)
    return metrics


def _aggregated(aggregate: Callable[..., Any], items: list[Any]) -> Metric | None:
    """What a task makes of all its scores; None where that is no number."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        options = {"args": argparse.Namespace(output_path=folder)} if "args" in inspect.signature(aggregate).parameters else {}
        value = aggregate(items, **options)
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return Metric(float(value), _error(aggregate, items, float(value)))


def _error(aggregate: Callable[..., Any], items: list[Any], value: float) -> float | None:
    """The standard error of an aggregation: of the mean where it is one, else by bootstrap.

    None where neither can be: MME's wants pairs of items, and one that takes `args` writes files.
    """
    scores = [score_of(item) for item in items]
    given = [score for score in scores if score is not None]
    if len(given) == len(items) > 1:
        for scale in (1, 100):
            if math.isclose(scale * sum(given) / len(given), value, abs_tol=1e-9):
                return scale * float(np.std(given, ddof=1)) / math.sqrt(len(given))
    if "args" in inspect.signature(aggregate).parameters:
        return None
    generator = np.random.default_rng(SEED)
    try:
        with quiet():
            chosen = generator.integers(len(items), size=(RESAMPLES, len(items)))
            return float(np.std([aggregate([items[index] for index in row]) for row in chosen], ddof=1))
    except Exception:  # an aggregation is the benchmark's own code and may raise anything
        return None


def _check(name: str, folder: str | None) -> None:
    """Raise UserError where lmms-eval knows no benchmark of this name."""
    known = manager(folder).all_tasks
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(f'{PREFIX}{one}' for one in close)}? " if close else ""
        raise UserError(f"lmms-eval has no benchmark '{name}'. {hint}Run 'lmms-eval --tasks list'.")


@cache
def manager(folder: str | None) -> Any:
    """lmms-eval's index of tasks: its own, or those of a folder of yours. Raises UserError where lmms-eval is missing."""
    os.environ.setdefault("HF_HOME", HF_HOME)  # some benchmarks read it and break without
    with quiet():
        try:
            from lmms_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(f"lmms-eval cannot be imported ({_line(error)}). Run 'pip install tokenzoo[lmms]'.") from None
        return TaskManager() if folder is None else TaskManager(include_path=folder, include_defaults=False)


def _located(name: str) -> tuple[str, str | None]:
    """A benchmark's name, and the folder of its file where it is one of the user's own."""
    path = Path(name)
    if path.suffix != ".yaml":
        return name, None
    try:
        named = re.search(r"^(?:task|group) *: *[\"']?([\w.-]+)[\"']?\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the benchmark '{name}': {_line(error)}") from None
    if not named:
        raise UserError(f"'{name}' names no task: a line 'task: NAME' is missing.")
    return named[1], str(path.parent)


def _plain(value: Any) -> Any:
    """As the store gives it back: NumPy's numbers as Python's, what JSON does not have as text."""
    return json.loads(json.dumps(value, default=lambda one: one.item() if hasattr(one, "item") else str(one)))


def _flat(tasks: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        task = task[1] if isinstance(task, tuple) else task
        if isinstance(task, dict):
            yield from _flat(task)
        elif task is not None:
            yield str(name), task


def _code(value: Any) -> str:
    """A function in a config, by its code; anything else as text."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval logs to standard output, where our tables go."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
