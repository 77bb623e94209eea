"""The built-in tasks, drawn on the fly from seeds, in the shape of the field's benchmarks.

Test scenes come from the generator `[HELD_OUT, ...]`, training scenes from `[TRAINING, ...]`: no seed is in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal
from zlib import crc32

import numpy as np

from tokenzoo.bench import image_questions as image
from tokenzoo.bench import video_questions as video
from tokenzoo.bench.scenes import picture, sample_scene
from tokenzoo.bench.task import Task
from tokenzoo.bench.video_scenes import sample_video
from tokenzoo.errors import unknown
from tokenzoo.models.question import Question

TRAINING = 0
HELD_OUT = 1


class GeneratedTask(Task):
    """Questions of a few kinds in turn, one per generated scene or video.

    :param functions: the question functions of `image_questions` or `video_questions`
    """

    def __init__(
        self,
        name: str,
        modality: Literal["image", "video"],
        functions: tuple[Callable, ...],
        chance: float,
        description: str,
        metric: Literal["accuracy", "f1"] = "accuracy",
    ) -> None:
        self.name = name
        self.modality = modality
        self.functions = functions
        self.chance = chance
        self.description = description
        self.metric = metric

    def questions(self, limit: int, seed: int = 0) -> Iterator[Question]:
        for index in range(limit):
            rng = np.random.default_rng([HELD_OUT, crc32(self.name.encode()), seed, index])
            yield self._question(rng, self.functions[index % len(self.functions)], f"{self.name}/{seed}/{index}")

    def _question(self, rng: np.random.Generator, function: Callable, name: str) -> Question:
        while True:
            shown: Any = sample_video(rng) if self.modality == "video" else sample_scene(rng)
            asked = function(shown, rng)
            if asked is not None:
                break
        prompt, choices, answer, _ = asked
        if self.modality == "video":
            return Question(name, prompt, video=shown.pictures(), choices=choices, answer=answer)
        return Question(name, prompt, images=(picture(shown),), choices=choices, answer=answer)


class CountingTask(GeneratedTask):
    """As above, but scenes are drawn until the wanted count occurs, so that every count is as frequent as any other."""

    def _question(self, rng: np.random.Generator, function: Callable, name: str) -> Question:
        wanted = str(int(name.rpartition("/")[2]) % len(image.COUNTS))
        while True:
            question = super()._question(rng, function, name)
            if question.answer == wanted:
                return question


def builtin_tasks() -> tuple[Task, ...]:
    """The tasks that ship with tokenzoo: five on images, three on videos."""
    return (
        GeneratedTask(
            "attribute", "image", (image.color_of_shape, image.shape_of_color), (1 / 8 + 1 / 6) / 2,
            "the colour of a shape, the shape of a colour (GQA-like)",
        ),
        GeneratedTask(
            "relation", "image", (image.shape_beside,), 1 / 5, "the shape left of, right of, above or below another (GQA-like)"
        ),
        GeneratedTask(
            "existence", "image", (image.exists,), 1 / 2, "is there a red circle, with adversarial negatives (POPE-like)", "f1"
        ),
        CountingTask("counting", "image", (image.count_color,), 1 / 5, "how many things have a colour, 0 to 4"),
        GeneratedTask(
            "reading", "image", (image.digit_of_color, image.digit_at), 1 / 10,
            "a small digit, named by its colour or place (TextVQA-like)",
        ),
        GeneratedTask(
            "order", "video", (video.first_digit, video.last_digit), 1 / 10, "which of two or three digits appears first or last"
        ),
        GeneratedTask(
            "when", "video", (video.phase_of_digit, video.digit_of_phase), (1 / 3 + 1 / 10) / 2,
            "when a digit is shown (beginning, middle or end), and which digit is shown then",
        ),
        GeneratedTask(
            "change", "video", (video.color_at_end, video.color_at_start), 1 / 8,
            "the colour an object changes to, or had at first",
        ),
    )  # fmt: skip


def task(name: str) -> Task:
    """A built-in task by name; raises `UserError` with the names that exist."""
    tasks = {one.name: one for one in builtin_tasks()}
    if name not in tasks:
        raise unknown("task", name, tasks, "tokenzoo compare --help")
    return tasks[name]
