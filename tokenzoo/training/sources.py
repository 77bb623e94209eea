"""What a training step is about: pictures or videos, their questions, and the views that their visual tokens form.

A source hides the difference between the two models' inputs: one picture as 144 tokens (LLaVA), one picture as base view plus
one tile with a newline after each row (LLaVA-OneVision), frames pooled to 36 tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from tokenzoo.bench.image_questions import IMAGE_QUESTIONS
from tokenzoo.bench.scenes import SIDE, Scene, labels, render, sample_scene
from tokenzoo.bench.video_questions import VIDEO_QUESTIONS
from tokenzoo.bench.video_scenes import sample_video
from tokenzoo.training.reductions import MODES, reduce

CROWDED_SCENE: dict[str, Any] = dict(shapes=(3, 5), digits=(2, 3))
CROWDED_VIDEO: dict[str, Any] = dict(events=(3, 3), still=(2, 3))
MOST_UNPOOLED = 0.25  #: the largest share kept of a video's patches where they skip the pooling
VIDEO_FRAMES = (4, 16)
RENUMBERED = 0.7  #: how often reduced tokens are numbered anew, as after a reduction before the decoder


@dataclass(frozen=True)
class Source:
    """:param functions: question functions
    :param sample: ``sample(rng)`` gives a scene or, with ``frames=``, a video
    :param crowded: arguments of the sampler for many objects at once: every other picture, so that an answer is rarely told by
        its kind alone (with one digit in most pictures, a decoder learns to name a digit whatever its colour)
    :param layout: "picture", "tiled" or "video"
    :param turns: how many steps in a row are about it, where a model has several sources
    """

    name: str
    functions: tuple[Callable, ...]
    sample: Callable
    crowded: dict[str, Any]
    layout: Literal["picture", "tiled", "video"]
    turns: int = 1

    def samples(self, rng: np.random.Generator, count: int) -> list:
        """Scenes, every other one crowded, or videos of one length, the fewer the more frames they have."""
        if self.layout != "video":
            return self._mixed(rng, count)
        frames = int(rng.integers(VIDEO_FRAMES[0], VIDEO_FRAMES[1] + 1))
        return [self.sample(rng, frames=frames) for _ in range(max(2, round(count * 8 / frames)))]

    def single(self, rng: np.random.Generator, count: int) -> list[Scene]:
        """Pictures, every other one crowded, to train the encoder on."""
        drawn = self._mixed(rng, count)
        return [one.frames[int(rng.integers(len(one.frames)))] for one in drawn] if self.layout == "video" else drawn

    def _mixed(self, rng: np.random.Generator, count: int) -> list:
        return [self.sample(rng, **self.crowded if index % 2 else {}) for index in range(count)]

    def lay_out(self, projected: torch.Tensor, model: Any, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Projected features [batch, pictures, 144, hidden], laid out as the model does or reduced in a random way.

        :return: tokens [batch, kept, hidden], positions [batch, kept], and the name of the way
        """
        mode = str(rng.choice(list(MODES), p=list(MODES.values())))
        if mode == "full":
            tokens = self.whole(projected, model)
            return tokens, torch.arange(tokens.shape[1]).expand(len(tokens), -1), mode
        most, name = 1.0, mode
        if self.layout == "tiled":  # several pictures in one prompt get the base view alone
            projected = projected.expand(-1, 1 if rng.random() < 0.3 else 2, -1, -1)
        elif self.layout == "video" and mode != "pooled" and rng.random() < 0.3:
            most, name = MOST_UNPOOLED, f"{mode}, unpooled"
        elif self.layout == "video":
            projected = pooled(projected, model)
        tokens, places = reduce(projected, mode, rng, most)
        if rng.random() < RENUMBERED:
            places = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return tokens, places, name

    def whole(self, projected: torch.Tensor, model: Any, newline: torch.Tensor | None = None) -> torch.Tensor:
        """All visual tokens [batch, tokens, hidden] as the model lays them out, between them its newline or another."""
        if self.layout == "picture":
            return projected.flatten(1, 2)
        newline = (model.model.image_newline if newline is None else newline).to(projected.dtype)
        if self.layout == "video":
            tokens = pooled(projected, model).flatten(1, 2)
            return torch.cat([tokens, newline.expand(len(tokens), 1, -1)], 1)
        rows = projected[:, 0].unflatten(1, (SIDE, SIDE))
        tile = torch.cat([rows, newline.expand(len(rows), SIDE, 1, -1)], 2)
        return torch.cat([projected[:, 0], tile.flatten(1, 2)], 1)


def pooled(projected: torch.Tensor, model: Any) -> torch.Tensor:
    """[batch, frames, 144, hidden] -> [batch, frames, 36, hidden], by the model's own pooling."""
    return model.model.apply_pooling(projected.flatten(0, 1)).unflatten(0, projected.shape[:2])


def scenes_of(sample: Any) -> tuple[Scene, ...]:
    return getattr(sample, "frames", (sample,))


def pictures(scenes: Sequence[Scene]) -> np.ndarray:
    """uint8 [scenes, 96, 96, 3]."""
    return np.stack([render(scene, number) for number, scene in enumerate(scenes)])


def shown(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the patches show [scenes, 5, 12, 12], and the time in each scene [scenes]."""
    return torch.from_numpy(np.stack([labels(scene) for scene in scenes])), torch.tensor([scene.time for scene in scenes])


LLAVA_PICTURES = Source("image", IMAGE_QUESTIONS, sample_scene, CROWDED_SCENE, "picture")
TILED_PICTURES = Source("image", IMAGE_QUESTIONS, sample_scene, CROWDED_SCENE, "tiled", turns=3)
VIDEOS = Source("video", VIDEO_QUESTIONS, sample_video, CROWDED_VIDEO, "video")
