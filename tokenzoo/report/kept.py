"""Pictures of what a method kept: each view of an image or video, stage of layers by stage, dropped patches greyed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenzoo.method.trace import SampleTrace, SourceTrace, Trace

#: More stages than this are thinned out; the first and the last are always drawn.
MOST_STAGES = 6
#: Half the width of the stroke through a dropped patch, as a share of the patch.
STROKE = 0.06


@dataclass(frozen=True)
class StagePicture:
    """The decoder layers `first` to `last`: how many tokens of the source are there, and which patches live on in them.

    `views` holds a bool array [height, width] for each view. `cache`: it is what their KV caches hold after the prompt.
    `own`: inside the encoder, whose layers these are then, a bool array for each view of which patches have a token of their own.
    """

    first: int
    last: int
    tokens: int
    views: list[np.ndarray]
    cache: bool = False
    own: list[np.ndarray] | None = None

    @property
    def title(self) -> str:
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}–{self.last}"
        where = "encoder " if self.own is not None else "cache of " * self.cache
        return f"{where}{layers}: {self.tokens} tokens"


def patch_rows(source: SourceTrace) -> np.ndarray:
    """For each patch (views one after another) the LLM row it went into, -1 where it was dropped before the LLM."""
    rows = np.asarray(source.rows, dtype=int)
    if source.assignment is not None:
        assignment = np.asarray(source.assignment, dtype=int)
        return np.where(assignment >= 0, rows[np.maximum(assignment, 0)] if len(rows) else -1, -1)
    return rows[_content(source)]


def own_tokens(trace: Trace, sample: int = 0) -> np.ndarray:
    """For each patch of the first source whether a token stands at its place; the others were merged into one, or dropped."""
    recorded = trace.samples[sample]
    source = recorded.sources[0]
    patches = sum(height * width for height, width in source.grids)
    if source.encoder is not None and not source.steps:
        return np.asarray(source.encoder.left_in) < 0
    if source.assignment is None or source.source.structural or sum(source.source.view_tokens) != patches:
        return np.ones(patches, bool)
    text = {place for place, visual in zip(recorded.entry, recorded.visual, strict=True) if not visual}
    places = [place for place in range(recorded.prompt_tokens) if place not in text][:patches]
    return np.isin(places, [recorded.entry[row] for row in source.rows])


def _content(source: SourceTrace) -> np.ndarray:
    """Which tokens of an unreduced source are patches: newlines end the rows of the last view, or the whole source."""
    patches = [height * width for height, width in source.grids]
    if not source.source.structural:
        return np.arange(sum(patches))
    height, width = source.grids[-1]
    start = sum(patches[:-1])
    if source.source.structural == height:
        last = (np.arange(height)[:, None] * (width + 1) + np.arange(width)).reshape(-1)
        return np.concatenate([np.arange(start), start + last])
    return np.arange(sum(patches))


def stage_pictures(trace: Trace, sample: int = 0, source: int = 0) -> list[StagePicture]:
    """What is left of a source inside the encoder, in each stage of decoder layers, and then in KV caches that were cut."""
    recorded = trace.samples[sample]
    seen = recorded.sources[source]
    rows = patch_rows(seen)
    stages = _stages(recorded, trace.layers)
    ends = [stage[0] - 1 for stage in stages[1:]] + [trace.layers - 1]
    spans = [(first, last, present, False) for (first, present), last in zip(stages, ends, strict=True)]
    spans += [(layers[0], layers[-1], present, True) for layers, present in recorded.cached]
    pictures = _encoder_pictures(seen, rows)
    for first, last, present, cache in spans:
        alive = np.isin(rows, present) & (rows >= 0)
        tokens = len(set(seen.rows) & set(present))
        pictures.append(StagePicture(first, last, tokens, split_views(alive, seen.grids), cache))
    return pictures


def _encoder_pictures(source: SourceTrace, rows: np.ndarray) -> list[StagePicture]:
    """What is left behind a third and behind two thirds of the encoder's cuts; behind the last is what the LLM begins with."""
    if source.encoder is None:
        return []
    cuts, pictures = source.encoder.cuts, []
    left_in = np.asarray(source.encoder.left_in)
    for number in sorted({len(cuts) // 3, 2 * len(cuts) // 3} - {0}):
        first, last = cuts[number - 1].layer, cuts[number].layer - 1
        own = (left_in < 0) | (left_in > first)
        alive = own | (rows >= 0)
        tokens = cuts[number - 1].left * len(source.grids)
        views = split_views(alive, source.grids)
        pictures.append(StagePicture(first, max(first, last), tokens, views, own=split_views(own, source.grids)))
    return pictures


def _stages(recorded: SampleTrace, layers: int) -> list[tuple[int, list[int]]]:
    """The stages in layer order; of several that begin at one layer, the last."""
    return sorted((first, rows) for first, rows in dict(recorded.stages).items() if first < layers)


def split_views(values: np.ndarray, grids: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Values of all patches as one array [height, width] per view."""
    ends = np.cumsum([height * width for height, width in grids])[:-1]
    return [part.reshape(grid) for part, grid in zip(np.split(values, ends), grids, strict=True)]


def thinned(pictures: Sequence[StagePicture], most: int = MOST_STAGES) -> list[StagePicture]:
    """At most `most` stages, evenly spread, the first and the last among them."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[index] for index in np.linspace(0, len(pictures) - 1, most).round().astype(int)]


def kept_figure(views: Sequence[Any], trace: Trace, title: str) -> Any:
    """Draw the stages of the first source over its views (pictures of any size, one per view of the trace).

    Patches whose token is gone are greyed and struck through. Those that were merged into another patch's token are pale, and
    lines part patches that went into different tokens.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = thinned(stage_pictures(trace))
    source = trace.samples[0].sources[0]
    groups = split_views(patch_rows(source), source.grids)
    merged = len(np.unique(patch_rows(source))) < sum(height * width for height, width in source.grids)
    owners = split_views(own_tokens(trace), source.grids)
    view_name = "frame" if source.source.kind == "video" else "view"
    one_view = len(source.grids) == 1
    rows, columns = (1, len(pictures)) if one_view else (len(pictures), len(source.grids))
    size = 2.4 if one_view else 1.5
    figure = Figure(figsize=(max(4.0, columns * size), rows * (size + 0.3) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, stage in enumerate(pictures):
        for view, (alive, group) in enumerate(zip(stage.views, groups, strict=True)):
            place = axes[0][index] if one_view else axes[index][view]
            place.imshow(greyed(views[view], alive, (stage.own or owners)[view]))
            if merged and stage.own is None:
                _lines(place, np.where(alive, group, -1), np.asarray(views[view]).shape)
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
            if one_view:
                place.set_title(stage.title, fontsize=8)
            elif view == 0:
                place.set_ylabel(stage.title.replace(": ", ":\n"), fontsize=8)
            if not one_view and index == 0:
                place.set_title(f"{view_name} {view}", fontsize=8)
    return figure


def greyed(picture: Any, alive: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """The picture [height, width, 3] in 0..1: patches that are not alive light grey with a stroke, which shows on grey pictures
    as well, and those without an `own` token pale."""
    pixels = np.asarray(picture, dtype=float)[..., :3] / 255
    height, width = pixels.shape[:2]
    y, x = (np.arange(height) + 0.5) * alive.shape[0] / height, (np.arange(width) + 0.5) * alive.shape[1] / width
    living = alive[y.astype(int)][:, x.astype(int)][..., None]
    merged = np.zeros_like(living) if own is None else ~own[y.astype(int)][:, x.astype(int)][..., None]
    grey = 0.82 + 0.12 * (pixels.mean(-1, keepdims=True) - 0.5)
    stroke = (np.abs((y % 1)[:, None] - (x % 1)) < STROKE)[..., None]
    return np.where(living, np.where(merged, 0.45 * pixels + 0.55, pixels), np.where(stroke, 0.35, grey))


def _lines(axes: Any, group: np.ndarray, shape: tuple[int, ...]) -> None:
    """Thin lines where neighbouring living patches belong to different tokens."""
    height, width = shape[0] / group.shape[0], shape[1] / group.shape[1]
    for y, x in zip(*np.nonzero((group[:, 1:] != group[:, :-1]) & (group[:, 1:] >= 0) & (group[:, :-1] >= 0)), strict=True):
        axes.plot([(x + 1) * width - 0.5] * 2, [y * height - 0.5, (y + 1) * height - 0.5], color="white", linewidth=0.5)
    for y, x in zip(*np.nonzero((group[1:] != group[:-1]) & (group[1:] >= 0) & (group[:-1] >= 0)), strict=True):
        axes.plot([x * width - 0.5, (x + 1) * width - 0.5], [(y + 1) * height - 0.5] * 2, color="white", linewidth=0.5)
