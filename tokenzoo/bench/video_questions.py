"""Questions about one video, one function per kind: video, random generator -> (prompt, choices, answer)."""

from __future__ import annotations

import numpy as np

from tokenzoo.bench.image_questions import Asked
from tokenzoo.bench.scenes import COLORS, DIGITS, SHAPES
from tokenzoo.bench.video_scenes import Video
from tokenzoo.bench.vocabulary import MOMENTS


def first_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears first?"""
    return "which digit appears first?", DIGITS, video.flashes[0][0]


def last_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears last?"""
    return "which digit appears last?", DIGITS, video.flashes[-1][0]


def frame_of_digit(video: Video, rng: np.random.Generator) -> Asked:
    """in which frame is the 7?"""
    digit, frame = video.flashes[int(rng.integers(len(video.flashes)))]
    return f"in which frame is the {digit}?", MOMENTS, MOMENTS[frame]


def digit_of_frame(video: Video, rng: np.random.Generator) -> Asked:
    """in the third frame which digit?"""
    digit, frame = video.flashes[int(rng.integers(len(video.flashes)))]
    return f"in the {MOMENTS[frame]} frame which digit?", DIGITS, digit


def color_at_end(video: Video, rng: np.random.Generator) -> Asked:
    """what color does the circle become?"""
    shape, _, after = video.changed
    return f"what color does the {shape} become?", tuple(COLORS), after


def color_at_start(video: Video, rng: np.random.Generator) -> Asked:
    """what color is the circle first?"""
    shape, before, _ = video.changed
    return f"what color is the {shape} first?", tuple(COLORS), before


def shape_that_changes(video: Video, rng: np.random.Generator) -> Asked:
    """which shape changes color?"""
    return "which shape changes color?", SHAPES, video.changed[0]


VIDEO_QUESTIONS = (
    first_digit, last_digit, frame_of_digit, digit_of_frame, color_at_end, color_at_start, shape_that_changes
)  # fmt: skip
