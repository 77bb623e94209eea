"""Questions about one scene, one function per kind of question: scene, random generator -> (prompt, choices, answer).

A function returns None when the scene offers nothing to ask. Training and the held-out tasks ask the same questions about
scenes from disjoint seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tokenzoo.bench.scenes import CELL_NAMES, COLORS, DIGITS, SHAPES, Scene, SceneObject


class Asked(NamedTuple):
    """A question and its answer; ``hint`` is what has to be found first, where answering takes two steps (training only)."""

    prompt: str
    choices: tuple[str, ...]
    answer: str
    hint: str = ""


Question = Callable[[Scene, np.random.Generator], Asked | None]

STEPS = {"left-of": (0, -1), "right-of": (0, 1), "above": (-1, 0), "below": (1, 0)}
YES_NO = ("yes", "no")
COUNTS = ("0", "1", "2", "3", "4")


def _pick(rng: np.random.Generator, things):
    return things[int(rng.integers(len(things)))]


def _with_own_color(things: tuple[SceneObject, ...]) -> list[SceneObject]:
    """Those whose colour no other of them has."""
    colors = [thing.color for thing in things]
    return [thing for thing in things if colors.count(thing.color) == 1]


def color_of_shape(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """what color is the circle?"""
    thing = _pick(rng, scene.shapes)
    return Asked(f"what color is the {thing.kind}?", tuple(COLORS), thing.color)


def shape_of_color(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """which shape is red?"""
    things = _with_own_color(scene.shapes)
    if not things:
        return None
    thing = _pick(rng, things)
    return Asked(f"which shape is {thing.color}?", SHAPES, thing.kind)


def where_is_shape(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """where is the circle?"""
    thing = _pick(rng, scene.shapes)
    return Asked(f"where is the {thing.kind}?", CELL_NAMES, CELL_NAMES[thing.cell])


def shape_at(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """which shape is top-left?"""
    thing = _pick(rng, scene.shapes)
    return Asked(f"which shape is {CELL_NAMES[thing.cell]}?", SHAPES, thing.kind)


def shape_beside(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """which shape is left-of the circle? (two steps: find the circle, then its neighbour)"""
    found = []
    for thing in scene.shapes:
        for name, (down, right) in STEPS.items():
            neighbour = scene.at(thing.row + down, thing.column + right)
            if neighbour is not None and neighbour.kind in SHAPES:
                found.append((name, thing, neighbour))
    if not found:
        return None
    name, thing, neighbour = _pick(rng, found)
    return Asked(f"which shape is {name} the {thing.kind}?", SHAPES, neighbour.kind, CELL_NAMES[thing.cell])


def exists(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """is there a red circle? Most negatives are adversarial: a shape and a colour that are there, but not together."""
    thing = _pick(rng, scene.shapes)
    if rng.random() < 0.5:
        return Asked(f"is there a {thing.color} {thing.kind}?", YES_NO, "yes", thing.color)
    present = [other.color for other in scene.shapes if other.color != thing.color]
    absent_kinds = [kind for kind in SHAPES if kind not in {other.kind for other in scene.shapes}]
    draw = rng.random()
    if present and draw < 0.6:
        return Asked(f"is there a {_pick(rng, present)} {thing.kind}?", YES_NO, "no", thing.color)
    if draw < 0.8:
        color = _pick(rng, [color for color in COLORS if color != thing.color])
        return Asked(f"is there a {color} {thing.kind}?", YES_NO, "no", thing.color)
    return Asked(f"is there a {thing.color} {_pick(rng, absent_kinds)}?", YES_NO, "no", "nothing")


def count_color(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """how many red things? Every count that occurs is equally likely to be asked for."""
    colors = [thing.color for thing in scene.objects]
    counts = {color: colors.count(color) for color in COLORS}
    possible = sorted({count for count in counts.values() if count < len(COUNTS)})
    wanted = _pick(rng, possible)
    color = _pick(rng, [color for color, count in counts.items() if count == wanted])
    return Asked(f"how many {color} things?", COUNTS, str(wanted))


def digit_of_color(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """which digit is red?"""
    things = _with_own_color(scene.digits)
    if not things:
        return None
    thing = _pick(rng, things)
    return Asked(f"which digit is {thing.color}?", DIGITS, thing.kind)


def digit_at(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """which digit is top-left?"""
    if not scene.digits:
        return None
    thing = _pick(rng, scene.digits)
    return Asked(f"which digit is {CELL_NAMES[thing.cell]}?", DIGITS, thing.kind)


def color_of_digit(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """what color is the 7?"""
    if not scene.digits:
        return None
    thing = _pick(rng, scene.digits)
    return Asked(f"what color is the {thing.kind}?", tuple(COLORS), thing.color)


IMAGE_QUESTIONS: tuple[Question, ...] = (
    color_of_shape, shape_of_color, where_is_shape, shape_at, shape_beside, exists, count_color, digit_of_color, digit_at,
    color_of_digit,
)  # fmt: skip
