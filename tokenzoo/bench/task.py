"""What a task is: a name, a stream of questions and a way to score answers. A third party's task subclasses `Task`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class Question:
    """One question about some pictures or one video.

    :param id: stable name, ``task/seed/index``
    :param prompt: the question alone: no placeholders, no chat template
    :param images: the pictures it is about
    :param video: the frames of the video it is about
    :param choices: the allowed answers, each one token for the embedded models; empty means free form
    :param answer: the right answer
    """

    id: str
    prompt: str
    images: tuple[PIL.Image.Image, ...] = ()
    video: tuple[PIL.Image.Image, ...] = ()
    choices: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question."""

    question_id: str
    answer: str
    correct: bool
    expected: str = ""


@dataclass(frozen=True)
class Score:
    """Accuracy with its Wilson 95 % interval, both in 0..1; ``f1`` (of "yes") for yes/no tasks only."""

    accuracy: float
    low: float
    high: float
    count: int
    f1: float | None = None


class Task(ABC):
    """A named set of questions.

    ``chance`` is the accuracy of guessing without looking, in 0..1.
    """

    name: str
    modality: Literal["image", "video"]
    metric: Literal["accuracy", "f1"] = "accuracy"
    chance: float = 0.0
    description: str = ""

    @abstractmethod
    def questions(self, limit: int, seed: int) -> Iterator[Question]:
        """At most ``limit`` questions, always the same for the same seed."""

    def score(self, predictions: Sequence[Prediction]) -> Score:
        """Score predictions for this task; raises `ValueError` if there are none."""
        return score(predictions, f1=self.metric == "f1")


def score(predictions: Sequence[Prediction], f1: bool = False) -> Score:
    """Accuracy, Wilson interval and, if asked for, the F1 of the answer "yes" (POPE's metric, arXiv 2305.10355)."""
    from scipy.stats import binomtest

    if not predictions:
        raise ValueError("no predictions to score")
    right = sum(prediction.correct for prediction in predictions)
    interval = binomtest(right, len(predictions)).proportion_ci(method="wilson")
    return Score(
        accuracy=right / len(predictions),
        low=float(interval.low),
        high=float(interval.high),
        count=len(predictions),
        f1=_f1_of_yes(predictions) if f1 else None,
    )


def _f1_of_yes(predictions: Sequence[Prediction]) -> float:
    said = sum(prediction.answer == "yes" for prediction in predictions)
    true = sum(prediction.expected == "yes" for prediction in predictions)
    both = sum(prediction.answer == prediction.expected == "yes" for prediction in predictions)
    return 2 * both / (said + true) if said + true else 0.0
