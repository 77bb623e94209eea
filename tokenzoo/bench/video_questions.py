"""Questions about one video, one function per kind: video, random generator -> (prompt, choices, answer)."""

from __future__ import annotations

import numpy as np

from tokenzoo.bench.image_questions import Asked
from tokenzoo.bench.scenes import COLORS, DIGITS, SHAPES
from tokenzoo.bench.video_scenes import Video
from tokenzoo.bench.vocabulary import MOMENTS


def appears_first(video: Video, rng: np.random.Generator) -> Asked:
    """which shape appears first? (after the opening frame)"""
    return "which shape appears first?", SHAPES, video.appearing[0]


def appears_last(video: Video, rng: np.random.Generator) -> Asked:
    """which shape appears last?"""
    return "which shape appears last?", SHAPES, video.appearing[-1]


def frame_of_needle(video: Video, rng: np.random.Generator) -> Asked:
    """in which frame is the 7? (a digit is shown in one frame only)"""
    digit, frame = video.needle
    return f"in which frame is the {digit}?", MOMENTS, MOMENTS[frame]


def needle_of_frame(video: Video, rng: np.random.Generator) -> Asked:
    """in the third frame which digit?"""
    digit, frame = video.needle
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
    appears_first, appears_last, frame_of_needle, needle_of_frame, color_at_end, color_at_start, shape_that_changes
)  # fmt: skip
