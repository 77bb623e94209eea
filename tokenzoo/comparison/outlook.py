"""What a comparison on lmms-eval's benchmarks would take: FLOPs, GPU hours by the roofline, downloads; nothing is run for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.settings import EMBEDDED, Settings
from tokenzoo.cost import price
from tokenzoo.lmms.known import PREFIX, Known, known_benchmarks
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.paths import is_folder

#: Tokens of an answer that are priced: benchmarks ask for a word or a letter.
ANSWER_TOKENS = 4


@dataclass(frozen=True)
class PlannedCell:
    """A method on a benchmark: how many questions, and what they cost on the named GPU (None: no price was asked for)."""

    task: str
    method: str
    questions: int
    flops: float | None = None
    gpu_hours: float | None = None


@dataclass
class Outlook:
    """The cells that would be measured, what must be there first, and what to know of the numbers."""

    cells: list[PlannedCell]
    hardware: str = ""
    downloads: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def gpu_hours(self) -> float | None:
        hours = [cell.gpu_hours for cell in self.cells if cell.gpu_hours is not None]
        return sum(hours) if hours and len(hours) == len(self.cells) else None


def outlook(settings: Settings, methods: Sequence[tuple[str, Pipeline]], targets: Sequence[Target]) -> Outlook:
    """What the benchmarks of a plan take, each question priced on the first of `--price` (convention `exact`).

    A prompt is the architecture's default picture or `--frames` frames, one at a time, and a few tokens of answer. Methods are
    priced as they are written; those whose counts depend on the picture as `none`.
    """
    benchmarks = {name: known_benchmarks().get(name.removeprefix(PREFIX)) for name in settings.tasks if name.startswith(PREFIX)}
    target = targets[0] if targets else None
    cells, unknown_counts = [], []
    for name, known in benchmarks.items():
        if known is None:
            unknown_counts.append(name)
            continue
        questions = min(settings.limit, known.questions)
        for text, method in methods:
            flops, seconds = _one_question(known, method, target, settings.frames) if target else (None, None)
            priced = [None if one is None else questions * one for one in (flops, seconds)]
            cells.append(PlannedCell(name, text, questions, priced[0], None if priced[1] is None else priced[1] / 3600))
    notes = [
        f"{PREFIX}{name}: {known.note}."
        for name, known in known_benchmarks().items()
        if known.note and PREFIX + name in benchmarks
    ]
    if unknown_counts:
        notes.append(f"How many questions {', '.join(unknown_counts)} asks is known once it is downloaded.")
    data = [known.data for known in benchmarks.values() if known is not None]
    models = [name for name in settings.model if not name.startswith(EMBEDDED) and not is_folder(name)]
    return Outlook(cells, target.hardware if target else "", list(dict.fromkeys([*models, *data])), notes)


def _one_question(known: Known, method: Pipeline, target: Target, frames: int) -> tuple[float, float | None]:
    """FLOPs and seconds of one question and its answer."""
    workload = target.model.video_workload(frames) if known.kind == "video" else target.model.image_workload()
    options: dict[str, Any] = {"convention": "exact", "hardware": target.hardware, "decode": ANSWER_TOKENS}
    try:
        cost = price(target.model, workload, method, **options)
    except (DataDependentError, NotImplementedError):
        cost = price(target.model, workload, **options)
    assert cost.decode is not None
    seconds = None if cost.seconds is None else cost.seconds + (cost.decode.seconds or 0)
    return cost.flops + cost.decode.flops, seconds
