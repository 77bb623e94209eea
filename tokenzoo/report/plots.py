"""Plots of a comparison: accuracy against FLOPs, and visual tokens per layer. Drawn without a display."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenzoo.comparison.rows import Section
from tokenzoo.comparison.statistics import Interval
from tokenzoo.errors import FailedError

#: Okabe and Ito's palette, told apart by colour-blind readers; with the markers it also survives grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
#: With more points than this, intervals are drawn thin.
MOST_BARS = 24
#: Inches of a line and of a letter in the legend: figures grow with it.
LINE, LETTER = 0.18, 0.065
#: Longer names are cut: a setting may be a whole table of numbers.
LONGEST_NAME = 40
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def figure(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    """A new figure and its axes, in the style of all our plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return drawn, axes


@dataclass(frozen=True)
class Point:
    """A row of the accuracy–FLOPs plot; `method` without its settings, `budget` what it was set to."""

    method: str
    budget: str
    label: str
    share: float
    accuracy: Interval


def points_of(section: Section) -> list[Point]:
    """The rows that have both an accuracy and a share of the LLM's FLOPs."""
    return [
        Point(row.method, row.budget, row.label, row.llm_share, row.overall.accuracy)
        for row in section.rows
        if row.overall is not None and row.llm_share is not None
    ]


def pareto(section: Section) -> Any:
    """Accuracy (95 % interval) against FLOPs relative to `none`; the dashed line joins what nothing beats.

    A method at several budgets has one colour and marker, and is named without its settings.
    """
    points = points_of(section)
    series = series_of(points)
    names = [_short(own[0].label if len(own) == 1 else own[0].method) for own in series]
    drawn, axes = figure(_width(names), _height(len(names)))
    for index, own in enumerate(series):
        for number, point in enumerate(own):
            value = 100 * point.accuracy.value
            error = [[value - 100 * point.accuracy.low], [100 * point.accuracy.high - value]]
            axes.errorbar(
                100 * point.share, value, yerr=error, color=_color(index), marker=_marker(index), capsize=2,
                elinewidth=0.9 if len(points) <= MOST_BARS else 0.3, markersize=6, linestyle="none",
                label="" if number else names[index],
            )  # fmt: skip
    front = pareto_front(points)
    axes.plot(
        [100 * point.share for point in front], [100 * point.accuracy.value for point in front],
        color="#888888", linewidth=1, linestyle="--", zorder=1,
    )  # fmt: skip
    axes.set_xlabel("LLM FLOPs, % of none (computed, the method's own included)")
    axes.set_ylabel("Accuracy, % (measured, 95 % interval)")
    axes.set_title(section.title, fontsize=10)
    _legend(axes, len(series))
    return drawn


def series_of(points: Sequence[Point]) -> list[list[Point]]:
    """The points of a method at several budgets together; where it stands twice at one budget, each for itself."""
    stands = Counter((point.method, point.budget) for point in points)
    twice = {method for (method, _), count in stands.items() if count > 1}
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.label if point.method in twice else point.method, []).append(point)
    return list(series.values())


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both accuracy and FLOPs, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.share, -point.accuracy.value)):
        if not front or point.accuracy.value > front[-1].accuracy.value:
            front.append(point)
    return front


def tokens_per_layer(section: Section) -> Any:
    """Visual tokens entering each decoder layer, as recorded."""
    rows = [row for row in section.rows if row.tokens_per_layer]
    names = [_short(row.label) for row in rows]
    drawn, axes = figure(_width(names), _height(len(names)))
    for index, row in enumerate(rows):
        counts = row.tokens_per_layer
        axes.step(
            range(len(counts)), counts, where="mid", color=_color(index), marker=_marker(index), markersize=4,
            linewidth=1.4, alpha=0.9, label=names[index],
        )  # fmt: skip
    axes.set_xlabel("Decoder layer")
    axes.set_ylabel("Visual tokens (measured, mean over questions)")
    axes.set_ylim(bottom=0)
    axes.set_title(section.title, fontsize=10)
    _legend(axes, len(rows))
    return drawn


def save(drawn: Any, path: Path) -> None:
    """Write a figure; the ending (png, pdf, svg) says how. Raises FailedError where it cannot be written."""
    try:
        drawn.savefig(path, dpi=160)
    except OSError as error:
        raise FailedError(f"Cannot write '{path}': {error.strerror}.") from None


def svg(drawn: Any) -> str:
    """A figure as SVG text to stand inside an HTML page."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tokenzoo", "svg.fonttype": "path"}):
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _width(names: Sequence[str]) -> float:
    """Inches of a figure whose legend has these names."""
    return 5.2 + LETTER * max(map(len, names), default=0)


def _height(entries: int) -> float:
    """Inches of a figure whose legend has so many names."""
    return max(4.2, LINE * (entries + 1))


def _legend(axes: Any, entries: int) -> None:
    """Beside the axes, where it hides nothing."""
    if entries:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _marker(index: int) -> str:
    return MARKERS[(index + index // len(COLORS)) % len(MARKERS)]
