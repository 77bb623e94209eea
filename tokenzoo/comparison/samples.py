"""Every single answer as JSON lines, one file for each model and task: what a table's accuracies are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenzoo.comparison.identity import Questions
from tokenzoo.comparison.summary import Measured
from tokenzoo.errors import FailedError


def write_samples(folder: Path, model: str, questions: Mapping[str, Questions], measured: Sequence[Measured]) -> None:
    """Write MODEL.TASK.jsonl: a line for each method and question. Raises FailedError where that cannot be written."""
    for task, asked in questions.items():
        lines = []
        for one in measured:
            if task not in one.cells:
                continue
            for told in _told(asked, one.cells[task]):
                line = {"model": model, "task": task, "method": one.candidate.label}
                line |= {"specification": str(one.candidate.method), "budget": one.candidate.budget}
                lines.append(json.dumps({**line, **told}))
        path = folder / f"{_file_name(model)}.{_file_name(task)}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise FailedError(f"Cannot write '{path}': {error.strerror}.") from None


def _told(asked: Questions, cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each question with its answer; a benchmark's with its metrics."""
    if "samples" in cell:
        for sample, answer in zip(cell["samples"], cell["answers"], strict=True):
            yield {"question": sample["prompt"], **answer, "metrics": sample["metrics"]}
        return
    for question, answer in zip(asked, cell["answers"], strict=True):
        yield {"question": question.prompt, "choices": question.choices, **answer}


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
