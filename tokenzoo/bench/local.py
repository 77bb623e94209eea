"""A user's own data as a task: a folder of pictures or videos and a questions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenzoo.bench.task import Task, normalise
from tokenzoo.errors import UserError
from tokenzoo.models.media import Frames, Pictures
from tokenzoo.models.question import Question

QUESTIONS_FILE = "questions.jsonl"
WANTED = "write one JSON object a line with image or video, question, answer."


class LocalTask(Task):
    """Questions from ``folder/questions.jsonl``, one JSON object a line::

        {"image": "a.png", "question": "what color is the circle?", "answer": "red", "choices": ["red", "blue"]}
        {"video": "clip.mp4", "question": "what happens?", "answer": "a goal"}

    Paths are relative to the folder; "image" may be a list, "video" a file or a folder of frames; "choices" may be left out.

    :param frames: how many frames of a video are shown
    :raises UserError: naming the file and the line, for anything missing or malformed
    """

    description = "questions about your own pictures or videos"

    def __init__(self, folder: str | Path, frames: int = 8) -> None:
        self.folder = Path(folder)
        self.frames = frames
        self.name = self.folder.resolve().name
        self._rows = self._read()
        self.modality = "video" if "video" in self._rows[0][1] else "image"
        sizes = [len(row["choices"]) for _, row in self._rows if row.get("choices")]
        self.chance = sum(1 / size for size in sizes) / len(self._rows)
        yes_no = all({str(choice).lower() for choice in row.get("choices", ())} == {"yes", "no"} for _, row in self._rows)
        self.metric = "f1" if yes_no else "accuracy"

    def __len__(self) -> int:
        return len(self._rows)

    def questions(self, limit: int, seed: int = 0) -> Iterator[Question]:
        """Seed 0 keeps the file's order, any other seed shuffles it; pictures are read as they are looked at."""
        order = np.arange(len(self._rows))
        if seed:
            np.random.default_rng(seed).shuffle(order)
        for index in order[:limit]:
            line, row = self._rows[index]
            yield self._question(f"{self.name}/{seed}/{index}", line, row)

    def _question(self, name: str, line: int, row: dict[str, Any]) -> Question:
        listed = row.get("image", [])
        paths = [self.folder / one for one in ([listed] if isinstance(listed, str) else listed)]
        images = Pictures(paths, self._at(line)) if paths else ()
        video = Frames(self.folder / row["video"], self.frames, self._at(line)) if "video" in row else ()
        choices = tuple(str(choice) for choice in row.get("choices", ()))
        return Question(name, row["question"], images, video, choices, str(row["answer"]))

    def _read(self) -> list[tuple[int, dict[str, Any]]]:
        path = self.folder / QUESTIONS_FILE
        if not path.is_file():
            raise UserError(f"No {QUESTIONS_FILE} in '{self.folder}': {WANTED}")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from error
        rows = [(number, self._parse(number, line)) for number, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise UserError(f"{path} is empty: {WANTED}")
        return rows

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{self._at(number)}: not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._at(number)}: too large or too deep to read") from error
        if not isinstance(row, dict):
            raise UserError(f"{self._at(number)}: expected a JSON object, got {type(row).__name__}")
        missing = [key for key in ("question", "answer") if key not in row]
        if missing or ("image" in row) == ("video" in row):
            wanted = f"'{missing[0]}'" if missing else "exactly one of 'image' and 'video'"
            raise UserError(f"{self._at(number)}: needs {wanted}, has {', '.join(map(repr, row)) or 'nothing'}")
        wrong = _wrong(row)
        if wrong:
            raise UserError(f"{self._at(number)}: {wrong}")
        return row

    def _at(self, line: int) -> str:
        return f"{self.folder / QUESTIONS_FILE} line {line}"


def _wrong(row: dict[str, Any]) -> str:
    """What is wrong with the values of a question's line, "" where nothing is."""
    images = row.get("image", "")
    images = images if isinstance(images, list) else [images]
    if not images or not all(isinstance(image, str) for image in images) or ("image" in row and not all(images)):
        return "'image' must be a file's name, or a list of them"
    if "video" in row and not (isinstance(row["video"], str) and row["video"]):
        return "'video' must be the name of a file or of a folder of frames"
    if "\0" in "".join([*images, row.get("video", "")]):
        return "a file's name holds a null character"
    if not isinstance(row["question"], str) or not row["question"].strip():
        return "'question' must be text"
    if not _is_answer(row["answer"]):
        return "'answer' must be text or a number, and not empty"
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(map(_is_answer, choices)):
        return "'choices' must be a list of text or numbers"
    if choices and str(row["answer"]) not in map(str, choices):
        return f"'choices' must be a list that contains the answer '{row['answer']}'"
    if len(set(map(normalise, map(str, choices)))) < len(choices):
        return "two of the 'choices' are the same answer"
    return ""


def _is_answer(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and bool(normalise(str(value)))
