"""Seeded videos of eight frames: digits flash up in single frames, a shape changes its colour, another stays as it is.

Texture and clutter stay, the pixel noise does not. An object sits on the grid of the 2 x 2 pooling of LLaVA-OneVision, so it
is one of 36 visual tokens in each frame that shows it. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tokenzoo.bench.scenes import CELLS, COLORS, DIGITS, FRAMES, SHAPES, Scene, SceneObject, picture


@dataclass(frozen=True)
class Video:
    """A scene per frame, and what happens in them.

    ``flashes``: (digit, frame) in the order of the frames, each digit being shown in that frame alone; ``changed``: the shape
    whose colour changes, with its first and its last colour.
    """

    frames: tuple[Scene, ...]
    flashes: tuple[tuple[str, int], ...]
    changed: tuple[str, str, str]

    def pictures(self) -> tuple[Image.Image, ...]:
        return tuple(picture(scene, frame) for frame, scene in enumerate(self.frames))


def sample_video(rng: np.random.Generator, flashes: int = 3, still: int = 1) -> Video:
    """Draw a video in which every kind of event happens.

    :param flashes: number of digits, each shown in a frame of its own
    :param still: number of shapes that do not change
    """
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colors = list(COLORS)
    cells = [int(cell) for cell in rng.permutation(CELLS * CELLS)]
    turn = int(rng.integers(1, FRAMES))
    before, after = (colors[i] for i in rng.permutation(len(colors))[:2])

    def thing(kind: str, color: str) -> SceneObject:
        down, right = (2 * int(step) for step in rng.integers(0, 2, 2))
        return SceneObject(kind, color, cells.pop(), (down, right))

    def any_color() -> str:
        return colors[int(rng.integers(len(colors)))]

    changing = thing(shapes[0], before)
    staying = [thing(shape, any_color()) for shape in shapes[1 : 1 + still]]
    moments = sorted(int(frame) for frame in rng.permutation(FRAMES)[:flashes])
    flashing = {moment: thing(DIGITS[i], any_color()) for moment, i in zip(moments, rng.permutation(10), strict=False)}
    seed = int(rng.integers(2**31))
    frames = []
    for frame in range(FRAMES):
        shown = [replace(changing, color=before if frame < turn else after), *staying]
        shown += [flashing[frame]] if frame in flashing else []
        frames.append(Scene(tuple(shown), seed))
    order = tuple((flashing[moment].kind, moment) for moment in moments)
    return Video(tuple(frames), order, (changing.kind, before, after))
