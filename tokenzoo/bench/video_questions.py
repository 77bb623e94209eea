"""Questions about one video, one function per kind: video, random generator -> (prompt, choices, answer)."""

from __future__ import annotations

import numpy as np

from tokenzoo.bench.image_questions import Asked
from tokenzoo.bench.scenes import COLORS, DIGITS
from tokenzoo.bench.video_scenes import Video
from tokenzoo.bench.vocabulary import PHASE_NAMES


def first_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears first?"""
    return Asked("which digit appears first?", DIGITS, video.events[0][0])


def last_digit(video: Video, rng: np.random.Generator) -> Asked:
    """which digit appears last?"""
    return Asked("which digit appears last?", DIGITS, video.events[-1][0])


def phase_of_digit(video: Video, rng: np.random.Generator) -> Asked:
    """when is the 7?"""
    digit, phase = video.events[int(rng.integers(len(video.events)))]
    return Asked(f"when is the {digit}?", PHASE_NAMES, PHASE_NAMES[phase])


def digit_of_phase(video: Video, rng: np.random.Generator) -> Asked:
    """which digit is in the middle?"""
    digit, phase = video.events[int(rng.integers(len(video.events)))]
    return Asked(f"which digit is in the {PHASE_NAMES[phase]}?", DIGITS, digit)


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
    digit, _ = video.events[int(rng.integers(len(video.events)))]
    color = next(thing.color for scene in video.frames for thing in scene.digits if thing.kind == digit)
    return Asked(f"what color is the {digit}?", tuple(COLORS), color)


VIDEO_QUESTIONS = (
    first_digit, last_digit, phase_of_digit, digit_of_phase, color_at_end, color_at_start, color_of_digit
)  # fmt: skip
