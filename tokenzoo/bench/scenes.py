"""Seeded scenes: a few small coloured objects on a textured, cluttered picture, and short videos of them.

A picture is 96 x 96 pixels and has nine cells of 32 x 32. An object fills a box of 16 x 16 pixels (2 x 2 patches of 8
pixels) somewhere in its cell: an answer hangs on about four of 144 patches, and the rest is background, as in real
pictures. Everything is drawn with numpy from a seed, so a scene is the same on every machine. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

SIZE = 96
CELLS = 3  #: cells along one side
CELL_SIZE = SIZE // CELLS
OBJECT_SIZE = 16
PATCH_SIZE = 8
FRAMES = 8

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


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, its colour, its cell (0..8) and its box's corner in the cell (in patches, 0..2)."""

    kind: str
    color: str
    cell: int
    offset: tuple[int, int] = (1, 1)

    @property
    def row(self) -> int:
        return self.cell // CELLS

    @property
    def column(self) -> int:
        return self.cell % CELLS

    @property
    def corner(self) -> tuple[int, int]:
        """Top left patch of the object's box, (row, column) in patches."""
        patches = CELL_SIZE // PATCH_SIZE
        return self.row * patches + self.offset[0], self.column * patches + self.offset[1]


@dataclass(frozen=True)
class Scene:
    """The objects of one picture and the seed of everything else in it (texture, clutter, jitter)."""

    objects: tuple[SceneObject, ...]
    seed: int

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


def sample_scene(rng: np.random.Generator, shapes: tuple[int, int] = (2, 4), digits: tuple[int, int] = (1, 2)) -> Scene:
    """Draw a scene: kinds differ from each other, colours may repeat.

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
    cells = rng.permutation(CELLS * CELLS)
    offsets = rng.integers(0, 3, (len(kinds), 2))
    objects = tuple(
        SceneObject(kind, colors[int(rng.integers(len(colors)))], int(cell), (int(offset[0]), int(offset[1])))
        for kind, cell, offset in zip(kinds, cells, offsets, strict=False)
    )
    return Scene(objects, int(rng.integers(2**31)))


@cache
def _sprites() -> dict[str, np.ndarray]:
    """Opacity masks of every kind, [variants, 16, 16] in 0..1; variants differ in size and sub-pixel position."""
    rng = np.random.default_rng(7)
    fine = (np.arange(OBJECT_SIZE * 4) + 0.5) / 4
    sprites = {}
    for kind in KINDS:
        masks = []
        for _ in range(24):
            radius = rng.uniform(6.3, 7.6)
            slack = OBJECT_SIZE / 2 - radius
            y, x = np.meshgrid(*(fine - OBJECT_SIZE / 2 - rng.uniform(-slack, slack) for _ in range(2)), indexing="ij")
            masks.append(_inside(kind, x / radius, y / radius).reshape(OBJECT_SIZE, 4, OBJECT_SIZE, 4).mean((1, 3)))
        sprites[kind] = np.stack(masks).astype(np.float32)
    return sprites


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
        variants = _sprites()[thing.kind]
        opacity = variants[int(rng.integers(len(variants)))][..., None]
        color = np.array(COLORS[thing.color], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
        y, x = (patch * PATCH_SIZE for patch in thing.corner)
        box = picture[y : y + OBJECT_SIZE, x : x + OBJECT_SIZE]
        box += opacity * (color - box)
    noise = np.random.default_rng([scene.seed, frame]).standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    return np.clip(picture + 5 * noise, 0, 255).astype(np.uint8)


def picture(scene: Scene, frame: int = 0) -> Image.Image:
    """A scene as a PIL picture."""
    return Image.fromarray(render(scene, frame))


def labels(scene: Scene) -> np.ndarray:
    """What each patch shows: int [2, 12, 12], kinds and colours counted from 1, 0 for background."""
    side = SIZE // PATCH_SIZE
    patches = np.zeros((2, side, side), np.int64)
    for thing in scene.objects:
        row, column = thing.corner
        patches[0, row : row + 2, column : column + 2] = KINDS.index(thing.kind) + 1
        patches[1, row : row + 2, column : column + 2] = list(COLORS).index(thing.color) + 1
    return patches
