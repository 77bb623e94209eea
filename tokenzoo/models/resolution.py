"""Smaller pictures and frames, for the models that take several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from tokenzoo.models.question import Question


def smaller(questions: Sequence[Question], scale: float) -> list[Question]:
    """The questions about pictures and frames whose sides are `scale` times as long."""

    def resized(pictures: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
        sizes = [tuple(max(1, round(side * scale)) for side in picture.size) for picture in pictures]
        return tuple(picture.resize(size, Image.Resampling.BICUBIC) for picture, size in zip(pictures, sizes, strict=True))  # type: ignore[arg-type]

    return [replace(question, images=resized(question.images), video=resized(question.video)) for question in questions]


def smaller_square(config: Any, image_processor: Any, scale: float) -> dict[str, Any]:
    """What to tell the processor of a model that sees squares, so that their side is about `scale` times as long: a whole
    number of patches, one at least."""
    patch = config.vision_config.patch_size
    side = max(1, round(config.vision_config.image_size * scale / patch)) * patch
    square = {"height": side, "width": side}
    return {"size": {"shortest_edge": side} if image_processor.size["shortest_edge"] else square, "crop_size": square}
