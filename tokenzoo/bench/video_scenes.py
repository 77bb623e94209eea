"""Seeded videos of eight frames: objects appear, change colour, or flash up in a single frame.

Texture and clutter stay, the pixel noise does not. An object sits on the grid of the 2 x 2 pooling of LLaVA-OneVision, so it
is one of 36 visual tokens in each frame that shows it. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tokenzoo.bench.scenes import CELLS, COLORS, DIGITS, FRAMES, SHAPES, Scene, SceneObject, picture


@dataclass(frozen=True)
class Video:
    """A scene per frame, and what happens in them.

    ``appearing``: shapes in the order in which they come (each at a frame of its own, after the first, and stays);
    ``changed``: the shape whose colour changes, with its first and its last colour; ``needle``: the digit shown in one frame
    alone, and that frame.
    """

    frames: tuple[Scene, ...]
    appearing: tuple[str, ...]
    changed: tuple[str, str, str]
    needle: tuple[str, int]

    def pictures(self) -> tuple[Image.Image, ...]:
        return tuple(picture(scene, frame) for frame, scene in enumerate(self.frames))


def sample_video(rng: np.random.Generator, appearing: int = 2, needles: int = 1) -> Video:
    """Draw a video in which every kind of event happens.

    :param appearing: number of shapes that appear one after the other
    :param needles: number of digits, each shown in a single frame
    """
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colors = list(COLORS)
    cells = [int(cell) for cell in rng.permutation(CELLS * CELLS)]
    arrivals = 1 + np.sort(rng.permutation(FRAMES - 1)[:appearing])
    turn = int(rng.integers(1, FRAMES))
    before, after = (colors[i] for i in rng.permutation(len(colors))[:2])
    digits = [DIGITS[i] for i in rng.permutation(len(DIGITS))[:needles]]
    moments = [int(frame) for frame in rng.permutation(FRAMES)[:needles]]

    def color() -> str:
        return colors[int(rng.integers(len(colors)))]

    def thing(kind: str, shade: str) -> SceneObject:
        down, right = (2 * int(step) for step in rng.integers(0, 2, 2))
        return SceneObject(kind, shade, cells.pop(), (down, right))

    coming = [(int(frame), thing(shape, color())) for frame, shape in zip(arrivals, shapes, strict=False)]
    changing = thing(shapes[appearing], before)
    flashes = [(frame, thing(digit, color())) for frame, digit in zip(moments, digits, strict=True)]
    seed = int(rng.integers(2**31))
    frames = []
    for frame in range(FRAMES):
        shown = [SceneObject(changing.kind, before if frame < turn else after, changing.cell, changing.offset)]
        shown += [one for arrival, one in coming if arrival <= frame]
        shown += [one for moment, one in flashes if moment == frame]
        frames.append(Scene(tuple(shown), seed))
    return Video(
        tuple(frames), tuple(one.kind for _, one in coming), (changing.kind, before, after), (digits[0], moments[0])
    )
