"""Every single answer as JSON lines, one file for each model and task: what a table's accuracies are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
            for question, answer in zip(asked, one.cells[task]["answers"], strict=True):
                line = {"model": model, "task": task, "method": one.candidate.label}
                line |= {"specification": str(one.candidate.method), "budget": one.candidate.budget}
                lines.append(json.dumps({**line, "question": question.prompt, "choices": question.choices, **answer}))
        path = folder / f"{_file_name(model)}.{_file_name(task)}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise FailedError(f"Cannot write '{path}': {error.strerror}.") from None


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
