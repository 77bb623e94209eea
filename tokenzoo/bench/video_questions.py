"""Questions about one video, one function per kind: video, random generator -> (prompt, choices, answer)."""

from __future__ import annotations

import numpy as np

from tokenzoo.bench.image_questions import Asked
from tokenzoo.bench.scenes import COLORS, DIGITS
from tokenzoo.bench.video_scenes import Video
from tokenzoo.bench.vocabulary import MOMENTS


def first_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears first?"""
    return Asked("which digit appears first?", DIGITS, video.flashes[0][0])


def last_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears last?"""
    return Asked("which digit appears last?", DIGITS, video.flashes[-1][0])


def frame_of_digit(video: Video, rng: np.random.Generator) -> Asked:
    """in which frame is the 7?"""
    digit, frame = video.flashes[int(rng.integers(len(video.flashes)))]
    return Asked(f"in which frame is the {digit}?", MOMENTS, MOMENTS[frame])


def digit_of_frame(video: Video, rng: np.random.Generator) -> Asked:
    """in the third frame which digit?"""
    digit, frame = video.flashes[int(rng.integers(len(video.flashes)))]
    return Asked(f"in the {MOMENTS[frame]} frame which digit?", DIGITS, digit)


def color_at_end(video: Video, rng: np.random.Generator) -> Asked:
    """what color does the circle become?"""
    shape, _, after = video.changed
    return Asked(f"what color does the {shape} become?", tuple(COLORS), after)


def color_at_start(video: Video, rng: np.random.Generator) -> Asked:
    """what color is the circle first?"""
    shape, before, _ = video.changed
    return Asked(f"what color is the {shape} first?", tuple(COLORS), before)


def color_of_digit(video: Video, rng: np.random.Generator) -> Asked:
    """what color is the 7?"""
    _, frame = video.flashes[int(rng.integers(len(video.flashes)))]
    (thing,) = video.frames[frame].digits
    return Asked(f"what color is the {thing.kind}?", tuple(COLORS), thing.color)


VIDEO_QUESTIONS = (
    first_digit, last_digit, frame_of_digit, digit_of_frame, color_at_end, color_at_start, color_of_digit
)  # fmt: skip
