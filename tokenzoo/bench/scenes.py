"""Seeded scenes: a few coloured objects on a textured, cluttered picture, and short videos of them.

A picture is 96 x 96 pixels, 12 x 12 patches of 8 pixels, and has nine cells of 4 x 4 patches. An object fills a square box of
whole patches, from one patch to a quarter of the picture, whose centre is well inside the object's cell: an answer hangs on a
few of the 144 patches, and most of the rest is background, as in real pictures. Everything is drawn with numpy from a seed, so
a scene is the same on every machine. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

SIZE = 96
CELLS = 3  #: cells along one side
PATCH_SIZE = 8
SIDE = SIZE // PATCH_SIZE  #: patches along one side
CELL_SIDE = SIDE // CELLS  #: patches along one side of a cell
FRAMES = 8
TINT = (18, 0, -18)  #: what the light adds to red, green and blue at the end of a video, and takes away at its beginning

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
DIGITS = tuple("0123456789")
KINDS = SHAPES + DIGITS
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (245, 225, 50),
    "purple": (170, 50, 205),
    "orange": (250, 140, 25),
    "cyan": (50, 215, 225),
    "white": (245, 245, 245),
}
CELL_NAMES = (
    "top-left", "top-center", "top-right",
    "middle-left", "center", "middle-right",
    "bottom-left", "bottom-center", "bottom-right",
)  # fmt: skip

#: 5 x 7 bitmaps of the digits, one row per number, most significant bit on the left.
_GLYPHS = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 2, 4, 8, 31), (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip


#: How often a shape or a digit has which size, in patches along one side. A digit in one patch is the finest detail there is.
SHAPE_SIZES = {1: 0.05, 2: 0.5, 3: 0.27, 4: 0.12, 6: 0.06}
DIGIT_SIZES = {1: 0.05, 2: 0.55, 3: 0.3, 4: 0.1}


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, its colour, its cell (0..8), and its box: top left patch (row, column) and side, in patches."""

    kind: str
    color: str
    cell: int
    corner: tuple[int, int]
    size: int = 2

    @property
    def row(self) -> int:
        return self.cell // CELLS

    @property
    def column(self) -> int:
        return self.cell % CELLS

    @property
    def box(self) -> tuple[slice, slice]:
        """The object's patches, as slices of rows and columns."""
        row, column = self.corner
        return slice(row, row + self.size), slice(column, column + self.size)


@dataclass(frozen=True)
class Scene:
    """The objects of one picture, the seed of everything else in it (texture, clutter, jitter), and the time of day.

    ``time``: 0 (bluish light) to 1 (reddish light); it passes evenly during a video and is 0.5, without a tint, in pictures.
    """

    objects: tuple[SceneObject, ...]
    seed: int
    time: float = 0.5

    @property
    def shapes(self) -> tuple[SceneObject, ...]:
        return tuple(thing for thing in self.objects if thing.kind in SHAPES)

    @property
    def digits(self) -> tuple[SceneObject, ...]:
        return tuple(thing for thing in self.objects if thing.kind in DIGITS)

    def at(self, row: int, column: int) -> SceneObject | None:
        """The object in a cell, or None."""
        if not (0 <= row < CELLS and 0 <= column < CELLS):
            return None
        return next((thing for thing in self.objects if thing.cell == row * CELLS + column), None)


def sample_scene(
    rng: np.random.Generator,
    shapes: tuple[int, int] = (2, 4),
    digits: tuple[int, int] = (1, 2),
    shape_sizes: Mapping[int, float] = SHAPE_SIZES,
    digit_sizes: Mapping[int, float] = DIGIT_SIZES,
) -> Scene:
    """Draw a scene: kinds differ from each other, colours may repeat, no two objects overlap.

    :param shapes: least and greatest number of shapes
    :param digits: least and greatest number of digits
    """
    shape_count = int(rng.integers(shapes[0], shapes[1] + 1))
    digit_count = int(rng.integers(digits[0], digits[1] + 1))
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:shape_count]]
    kinds += [DIGITS[i] for i in rng.permutation(len(DIGITS))[:digit_count]]
    colors = list(COLORS)
    if rng.random() < 0.5:  # a small palette makes repeated colours, hence something to count
        colors = [colors[i] for i in rng.permutation(len(colors))[: int(rng.integers(1, 4))]]
    sizes = [draw_size(rng, shape_sizes if kind in SHAPES else digit_sizes) for kind in kinds]
    things = [(kind, colors[int(rng.integers(len(colors)))], size) for kind, size in zip(kinds, sizes, strict=True)]
    return Scene(arrange(rng, things), int(rng.integers(2**31)))


def draw_size(rng: np.random.Generator, sizes: Mapping[int, float]) -> int:
    return int(rng.choice(list(sizes), p=list(sizes.values())))


def arrange(rng: np.random.Generator, things: Sequence[tuple[str, str, int]], step: int = 1) -> tuple[SceneObject, ...]:
    """Give each (kind, colour, size) a cell of its own and a box that no other box overlaps; large ones find their place first.

    :param step: corners lie on every ``step``-th patch
    """
    taken = np.zeros((SIDE, SIDE), bool)
    free = [int(cell) for cell in rng.permutation(CELLS * CELLS)]
    placed: dict[int, SceneObject] = {}
    for index in sorted(range(len(things)), key=lambda index: -things[index][2]):
        kind, color, size = things[index]
        while index not in placed:
            for cell in free:
                candidates = [SceneObject(kind, color, cell, corner, size) for corner in _corners(cell, size, step)]
                candidates = [thing for thing in candidates if not taken[thing.box].any()]
                if candidates:
                    thing = candidates[int(rng.integers(len(candidates)))]
                    placed[index], taken[thing.box] = thing, True
                    free.remove(cell)
                    break
            else:
                size -= step  # nowhere is there room for so large a box
    return tuple(placed[index] for index in range(len(things)))


@cache
def _corners(cell: int, size: int, step: int) -> tuple[tuple[int, int], ...]:
    """Corners of boxes of a size whose centre is in the cell and, but for boxes of one patch, not on the cell's rim."""
    rim = 0 if size == 1 else 1

    def along(index: int) -> list[int]:
        first, last = CELL_SIDE * index + rim, CELL_SIDE * (index + 1) - rim
        return [low for low in range(0, SIDE - size + 1, step) if first <= low + size / 2 <= last]

    row, column = divmod(cell, CELLS)
    return tuple((down, right) for down in along(row) for right in along(column))


@cache
def _sprites(kind: str, size: int) -> np.ndarray:
    """Opacity masks of a kind, [variants, side, side] in 0..1; variants differ in size and sub-pixel position."""
    rng = np.random.default_rng([7, KINDS.index(kind), size])
    side = size * PATCH_SIZE
    fine = (np.arange(side * 4) + 0.5) / 4
    masks = []
    for _ in range(12):
        radius = side / 2 * rng.uniform(0.79, 0.95)
        slack = side / 2 - radius
        y, x = np.meshgrid(*(fine - side / 2 - rng.uniform(-slack, slack) for _ in range(2)), indexing="ij")
        masks.append(_inside(kind, x / radius, y / radius).reshape(side, 4, side, 4).mean((1, 3)))
    return np.stack(masks).astype(np.float32)


def _inside(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points (in units of the object's radius) belong to the kind."""
    if kind in DIGITS:
        column, row = np.floor((x / 0.74 + 1) * 2.5).astype(int), np.floor((y + 1) * 3.5).astype(int)
        bitmap = np.array(_GLYPHS[int(kind)])[np.clip(row, 0, 6)] >> (4 - np.clip(column, 0, 4)) & 1
        return (bitmap == 1) & (row >= 0) & (row < 7) & (column >= 0) & (column < 5)
    distance = np.hypot(x, y)
    if kind == "circle":
        return distance < 1
    if kind == "ring":
        return (distance < 1) & (distance > 0.55)
    if kind == "square":
        return np.maximum(abs(x), abs(y)) < 0.88
    if kind == "diamond":
        return abs(x) + abs(y) < 1.05
    if kind == "triangle":
        return (abs(x) < (y + 0.95) * 0.55) & (y < 0.9)
    return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)  # cross


def render(scene: Scene, frame: int = 0) -> np.ndarray:
    """Draw a scene: uint8 [96, 96, 3]. Frames of one scene share texture and clutter but not the pixel noise."""
    rng = np.random.default_rng(scene.seed)
    picture = np.full((SIZE, SIZE, 3), rng.uniform(35, 110), np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
    picture += np.array(TINT, np.float32) * (2 * scene.time - 1)
    texture = rng.normal(0, 9, (13, 13)).astype(np.float32)
    picture += np.kron(texture, np.ones((8, 8), np.float32))[4:100, 4:100, None]
    if rng.random() < 0.5:
        wave = np.sin(np.arange(SIZE) * rng.uniform(0.2, 1.2) + rng.uniform(0, 6)).astype(np.float32)
        picture += 8 * (wave[:, None, None] if rng.random() < 0.5 else wave[None, :, None])
    for _ in range(int(rng.integers(4, 10))):  # clutter: dull specks and short strokes
        y, x = rng.integers(0, SIZE - 6, 2)
        height, width = ((1, 6), (6, 1), (2, 2), (3, 3))[int(rng.integers(4))]
        picture[y : y + height, x : x + width] = rng.uniform(20, 170, 3)
    for thing in scene.objects:
        look = np.random.default_rng([scene.seed, thing.cell])  # an object looks the same beside whatever comes and goes
        variants = _sprites(thing.kind, thing.size)
        opacity = variants[int(look.integers(len(variants)))][..., None]
        color = np.array(COLORS[thing.color], np.float32) + look.normal(0, 7, 3).astype(np.float32)
        y, x = (patch * PATCH_SIZE for patch in thing.corner)
        box = picture[y : y + thing.size * PATCH_SIZE, x : x + thing.size * PATCH_SIZE]
        box += opacity * (color - box)
    noise = np.random.default_rng([scene.seed, frame]).standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    return np.clip(picture + 5 * noise, 0, 255).astype(np.uint8)


def picture(scene: Scene, frame: int = 0) -> Image.Image:
    """A scene as a PIL picture."""
    return Image.fromarray(render(scene, frame))


def labels(scene: Scene) -> np.ndarray:
    """What each patch shows: int [5, 12, 12].

    Kind and colour counted from 1, 0 for background; row and column of the cell, the object's where the patch shows one, else
    its own; the object's size, 0 for background.
    """
    cell = np.arange(SIDE) // CELL_SIDE
    patches = np.zeros((5, SIDE, SIDE), np.int64)
    patches[2], patches[3] = cell[:, None], cell[None]
    for thing in scene.objects:
        shown = KINDS.index(thing.kind) + 1, list(COLORS).index(thing.color) + 1, thing.row, thing.column, thing.size
        patches[(slice(None), *thing.box)] = np.array(shown)[:, None, None]
    return patches
