"""What a model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    images: Sequence[PIL.Image.Image] = ()
    video: Sequence[PIL.Image.Image] = ()
    choices: tuple[str, ...] = ()
    answer: str = ""
