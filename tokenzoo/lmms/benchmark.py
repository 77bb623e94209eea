"""A benchmark of lmms-eval as a task: its questions, and an evaluation by lmms-eval itself with a method at work."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenzoo.bench.task import Prediction, Task
from tokenzoo.errors import FailedError, UserError
from tokenzoo.lmms.known import PREFIX, known_benchmarks
from tokenzoo.models.question import Question

if TYPE_CHECKING:
    from tokenzoo.method.pipeline import Pipeline
    from tokenzoo.method.trace import Trace
    from tokenzoo.models.checkpoint import Checkpoint

#: Bootstrap samples of a standard error, and their seed.
RESAMPLES, SEED = 200, 0
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
        from lmms_eval.tasks import get_task_dict

        try:
            with quiet():
                return dict(_flat(get_task_dict([self.task_name], manager(self.folder), "simple")))
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

    def count(self, limit: int) -> int:
        """How many questions an evaluation with this limit asks: lmms-eval takes so many of each member of a group."""
        return sum(min(limit, len(task.eval_docs)) for task in self.leaves.values())

    def questions(self, limit: int, seed: int = 0) -> Iterator[Question]:
        """The first questions, to time and to set methods on; the right answer is lmms-eval's business and is left out."""
        from tokenzoo.lmms.model import question_of

        for name, task in self.leaves.items():
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


def evaluate(
    benchmark: Benchmark,
    checkpoint: Checkpoint,
    method: Pipeline,
    limit: int,
    batch_size: int,
    watch: Callable[[Trace, int], None],
) -> dict[str, Any]:
    """lmms-eval's own evaluation: `answers`, each sample with its prompt and metrics, and the metrics of the whole."""
    from lmms_eval.evaluator import simple_evaluate

    from tokenzoo.lmms.model import Tokenzoo

    model = Tokenzoo(method=method, batch_size=batch_size, frames=benchmark.frames, checkpoint=checkpoint, watch=watch)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        told = argparse.Namespace(output_path=folder, process_with_media=True)  # where some benchmarks write what a server scores
        found = simple_evaluate(
            model=model, tasks=[benchmark.task_name], limit=limit, task_manager=manager(benchmark.folder),
            bootstrap_iters=0, process_docs_parallel=1, log_samples=True, cli_args=told,
        )  # fmt: skip
    if found is None:
        raise FailedError(f"lmms-eval returned no result for '{benchmark.task_name}'.")
    answers, samples = [], []
    for name, task in benchmark.leaves.items():
        metrics = list(task.aggregation())
        for sample in found["samples"][name]:
            answers.append(asdict(_prediction(name, sample, [benchmark.metric_name, *metrics])))
            scores = {metric: sample[metric] for metric in metrics if metric in sample}
            samples.append(json.loads(json.dumps({"prompt": _prompt(sample), "metrics": scores}, default=str)))
    return {
        "answers": answers,
        "samples": samples,
        "metric": benchmark.metric_name,
        "metrics": {name: asdict(one) for name, one in _metrics(benchmark, found).items()},
        "scored": all(answer["score"] is not None for answer in answers),
    }


def _prediction(task: str, sample: dict[str, Any], metrics: Sequence[str]) -> Prediction:
    answer = sample["filtered_resps"][0] if sample["filtered_resps"] else ""
    score = score_of(next((sample[metric] for metric in metrics if metric in sample), None))
    return Prediction(f"{task}/{sample['doc_id']}", str(answer).strip(), score == 1, str(sample["target"]), score=score)


def score_of(told: Any) -> float | None:
    """What a benchmark gives one answer, 0 to 1: a number, or a record that has it; None where it says none."""
    if isinstance(told, dict):
        right = next((told[answer] == told[expected] for answer, expected in PAIRS if answer in told and expected in told), None)
        told = next((told[name] for name in SCORES if name in told), right)
    if isinstance(told, (bool, int, float)) and 0 <= told <= 1:
        return float(told)
    return None


def _metrics(benchmark: Benchmark, found: dict[str, Any]) -> dict[str, Metric]:
    """The whole benchmark's metrics; a group that lmms-eval gives none of its own has the mean over its questions."""
    own = _numbers(found["results"].get(benchmark.task_name, {})) or _numbers(
        found.get("groups", {}).get(benchmark.task_name, {})
    )
    parts: dict[str, list[tuple[int, float, float | None]]] = {}
    for name, task in benchmark.leaves.items():
        for metric, value in _numbers(found["results"].get(name, {})).items():
            items = [sample[metric] for sample in found["samples"][name] if metric in sample]
            parts.setdefault(metric, []).append((len(items), value, _error(task.aggregation()[metric], items, value)))
    metrics = {}
    for metric, listed in parts.items():
        total = sum(count for count, _, _ in listed)
        mean = sum(count * value for count, value, _ in listed) / total
        errors = [(count / total * error) ** 2 for count, _, error in listed if error is not None]
        metrics[metric] = Metric(own.get(metric, mean), math.sqrt(sum(errors)) if len(errors) == len(listed) else None)
    return metrics


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    """Metric -> value of lmms-eval's `metric,filter` entries (the first filter's), standard errors left out."""
    numbers: dict[str, float] = {}
    for key, value in results.items():
        metric, comma, _ = key.partition(",")
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if comma and plain and not metric.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")):
            numbers.setdefault(metric, float(value))
    return numbers


def _error(aggregate: Callable[..., Any], items: list[Any], value: float) -> float | None:
    """The standard error of an aggregation: of the mean where it is one, else by bootstrap.

    None where neither can be: MME's wants pairs of items, and one that takes `args` writes files or asks a server.
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


def _prompt(sample: dict[str, Any]) -> str:
    return next((one for one in sample["arguments"] if isinstance(one, str)), "")


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
