"""What a training step is about: pictures or videos, their questions, and where their visual tokens stand.

A source hides the difference between the two models' inputs: one picture as 144 tokens (LLaVA), one picture as base view plus
one tile with a newline after each row (LLaVA-OneVision), eight frames pooled to 36 tokens each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenzoo.bench.image_questions import IMAGE_QUESTIONS
from tokenzoo.bench.scenes import CELLS, FRAMES, PATCH_SIZE, SIZE, labels, render, sample_scene
from tokenzoo.bench.train_oracle import OracleTokens, per_cell
from tokenzoo.bench.video_questions import VIDEO_QUESTIONS
from tokenzoo.bench.video_scenes import sample_video

SIDE = SIZE // PATCH_SIZE
PATCHES = SIDE * SIDE
POOLED_SIDE = SIDE // 2
#: easiest first; the trainer moves on when most kinds of question are answered
IMAGE_LEVELS = (dict(shapes=(2, 2), digits=(0, 1)), dict(shapes=(2, 3), digits=(1, 2)), dict(shapes=(2, 4), digits=(2, 2)))
VIDEO_LEVELS = (dict(flashes=2), dict(flashes=3))
CROWDED_SCENE = dict(shapes=(3, 5), digits=(3, 4))
CROWDED_VIDEO = dict(flashes=6, still=2)


@dataclass(frozen=True)
class Source:
    """:param functions: question functions
    :param levels: difficulty, as arguments of the sampler
    :param sample: ``sample(rng, **level)`` gives a scene or a video
    :param crowded: arguments of the sampler for many objects at once, to train the encoder on
    :param frames: pictures in each sample
    :param span: visual tokens of a sample in the real model
    """

    name: str
    functions: tuple[Callable, ...]
    levels: tuple[dict, ...]
    crowded: dict
    sample: Callable
    frames: int
    span: int

    def shown(self, samples: list) -> np.ndarray:
        """What the patches show, int [batch * frames, 2, 12, 12]."""
        return np.stack([labels(scene) for sample in samples for scene in _scenes(sample)])

    def pictures(self, samples: list) -> np.ndarray:
        """uint8 [batch * frames, 96, 96, 3]."""
        return np.stack([render(scene, frame) for sample in samples for frame, scene in enumerate(_scenes(sample))])

    def cell_tokens(self, oracle: OracleTokens, shown: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """Oracle tokens, one per cell, [batch, frames * 9, hidden], and their positions."""
        tokens = oracle(per_cell(shown))
        row, column = np.divmod(np.arange(CELLS * CELLS), CELLS)
        if self.frames == 1:
            positions = (4 * row + 1) * SIDE + 4 * column + 1
        else:
            positions = 2 * row * POOLED_SIDE + 2 * column
            positions = (np.arange(self.frames)[:, None] * POOLED_SIDE**2 + positions).ravel()
        return tokens.reshape(-1, len(positions), tokens.shape[-1]), positions

    def all_tokens(self, features: torch.Tensor, model: Any) -> tuple[torch.Tensor, np.ndarray]:
        """Projected patch features [batch * frames, 144, hidden] laid out as the model does, and their positions."""
        if self.span == PATCHES:
            tokens = features
        elif self.frames > 1:
            pooled = model.model.apply_pooling(features)
            tokens = pooled.reshape(-1, self.frames * pooled.shape[1], pooled.shape[2])
            tokens = torch.cat([tokens, model.model.image_newline.expand(len(tokens), 1, -1)], 1)
        else:
            rows = features.unflatten(1, (SIDE, SIDE))
            newline = model.model.image_newline.expand(len(rows), SIDE, 1, -1)
            tokens = torch.cat([features, torch.cat([rows, newline], 2).flatten(1, 2)], 1)
        return tokens, np.arange(self.span)


def _scenes(sample) -> tuple:
    return getattr(sample, "frames", (sample,))


LLAVA_PICTURES = Source("image", IMAGE_QUESTIONS, IMAGE_LEVELS, CROWDED_SCENE, sample_scene, 1, PATCHES)
TILED_PICTURES = Source("image", IMAGE_QUESTIONS, IMAGE_LEVELS, CROWDED_SCENE, sample_scene, 1, 2 * PATCHES + SIDE)
VIDEOS = Source("video", VIDEO_QUESTIONS, VIDEO_LEVELS, CROWDED_VIDEO, sample_video, FRAMES, FRAMES * POOLED_SIDE**2 + 1)
