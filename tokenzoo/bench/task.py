"""What a task is: a name, a stream of questions and a way to score answers. A third party's task subclasses `Task`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenzoo.models.question import Question


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question; `chosen`: by the logits of the choices' first tokens, not generated in free form.

    `score` is what a benchmark with soft scores gives the answer, 0 to 1; None where right or wrong is all there is.
    """

    question_id: str
    answer: str
    correct: bool
    expected: str = ""
    chosen: bool = False
    score: float | None = None

    @property
    def value(self) -> float:
        """What the answer counts, 0 to 1."""
        return float(self.correct) if self.score is None else self.score


@dataclass(frozen=True)
class Score:
    """Accuracy (the mean of what answers count) with its 95 % interval, in 0..1; ``f1`` (of "yes") for yes/no tasks only.

    The interval is Wilson's, or where answers count in part Student's of the mean.
    """

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
    if not predictions:
        raise ValueError("no predictions to score")
    values = [prediction.value for prediction in predictions]
    mean = sum(values) / len(values)
    low, high = wilson(round(sum(values)), len(values)) if set(values) <= {0, 1} else interval_of_mean(values)
    return Score(mean, low, high, len(predictions), _f1_of_yes(predictions) if f1 else None)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The ends of Student's 95 % interval of a mean of scores, within (0, 1); all of that for fewer than two."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return 0.0, 1.0
    mean = sum(values) / len(values)
    reach = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return max(0.0, mean - reach), min(1.0, mean + reach)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval of a share; (0, 1) where there is nothing to count."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, as in the VQA evaluation (Antol et al. 2015).

    An answer that is an article alone, such as the letter of choice A, stays.
    """
    words = re.sub(r"[^\w\s-]", " ", text.lower()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def is_yes_no(predictions: Sequence[Prediction]) -> bool:
    """Whether every right answer is yes or no."""
    return {normalise(prediction.expected) for prediction in predictions} <= {"yes", "no"}


def _f1_of_yes(predictions: Sequence[Prediction]) -> float:
    pairs = [(normalise(prediction.answer) == "yes", normalise(prediction.expected) == "yes") for prediction in predictions]
    said, true = sum(answer for answer, _ in pairs), sum(expected for _, expected in pairs)
    both = sum(answer and expected for answer, expected in pairs)
    return 2 * both / (said + true) if said + true else 0.0
