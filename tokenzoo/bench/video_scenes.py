"""Seeded videos: digits come and go, a shape changes its colour, others stay as they are.

Every event lasts: a digit is shown for a third of the video at most and for two frames at least (one where a third has no
more), and a colour stays for a quarter at least. Texture and clutter do not move; the pixel noise is new in every frame, and
the light turns slowly. Objects sit on the grid of the 2 x 2 pooling of LLaVA-OneVision and fill one to nine of a frame's 36
visual tokens. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tokenzoo.bench.scenes import COLORS, DIGITS, FRAMES, SHAPES, Scene, arrange, draw_size, picture

#: How often a shape or a digit has which size, in patches along one side.
SHAPE_SIZES = {2: 0.3, 4: 0.5, 6: 0.2}
DIGIT_SIZES = {2: 0.4, 4: 0.6}
PHASES = 3  #: beginning, middle, end


@dataclass(frozen=True)
class Video:
    """A scene per frame, and what happens in them.

    ``events``: (digit, phase 0..2) in the order of their frames, at most one in each third of the video; ``changed``: the shape
    whose colour changes, with its first and its last colour.
    """

    frames: tuple[Scene, ...]
    events: tuple[tuple[str, int], ...]
    changed: tuple[str, str, str]

    def pictures(self) -> tuple[Image.Image, ...]:
        return tuple(picture(scene, frame) for frame, scene in enumerate(self.frames))


def sample_video(
    rng: np.random.Generator, frames: int = FRAMES, events: tuple[int, int] = (2, 3), still: tuple[int, int] = (1, 2)
) -> Video:
    """Draw a video in which every kind of event happens.

    :param events: least and greatest number of digits
    :param still: least and greatest number of shapes that do not change
    """
    colors = list(COLORS)
    before, after = (colors[i] for i in rng.permutation(len(colors))[:2])
    phases = sorted(int(phase) for phase in rng.permutation(PHASES)[: int(rng.integers(events[0], events[1] + 1))])
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: 1 + int(rng.integers(still[0], still[1] + 1))]]
    kinds += [DIGITS[i] for i in rng.permutation(len(DIGITS))[: len(phases)]]
    sizes = [draw_size(rng, SHAPE_SIZES if kind in SHAPES else DIGIT_SIZES) for kind in kinds]
    shown = [(kind, colors[int(rng.integers(len(colors)))], size) for kind, size in zip(kinds, sizes, strict=True)]
    changing, *others = arrange(rng, shown, step=2)
    staying, digits = others[: len(others) - len(phases)], others[len(others) - len(phases) :]
    thirds = np.array_split(np.arange(frames), PHASES)
    spans = [_span(rng, thirds[phase]) for phase in phases]
    least = max(1, frames // 4)
    turn = int(rng.integers(least, frames - least + 1))
    seed = int(rng.integers(2**31))
    scenes = []
    for frame in range(frames):
        things = [replace(changing, color=before if frame < turn else after), *staying]
        things += [digit for digit, span in zip(digits, spans, strict=True) if frame in span]
        scenes.append(Scene(tuple(things), seed, frame / (frames - 1)))
    happened = tuple((digit.kind, phase) for digit, phase in zip(digits, phases, strict=True))
    return Video(tuple(scenes), happened, (changing.kind, before, after))


def _span(rng: np.random.Generator, third: np.ndarray) -> range:
    """Two or more frames in a row of a third of a video; one where it has no more."""
    length = int(rng.integers(min(2, len(third)), len(third) + 1))
    first = int(third[0]) + int(rng.integers(len(third) - length + 1))
    return range(first, first + length)
