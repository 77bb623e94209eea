"""Finding 3 of the paper: visual tokens matter in early layers; later ones need hardly any.

The paper merges to 25 % before it prunes. Here nothing is merged: a picture has 144 tokens, not a video's 6272, and
merging them loses so much that no pruning window would show.
"""

from __future__ import annotations

from typing import Any

from tokenzoo.comparison.rows import Row
from tokenzoo.numbers import percent
from tokenzoo.report.plots import figure
from tokenzoo.studies.common import Lab, Study, accuracy_text, change, points, worse

#: (l1, l2) of 28 layers -> VideoMME without subtitles, as the paper prints them (merged to 25 % first).
PAPER = {
    (28, 29): 58.0, (21, 29): 58.0, (14, 29): 57.7, (7, 29): 57.4, (21, 22): 58.1, (14, 22): 58.2, (7, 22): 56.8,
    (14, 15): 54.3, (7, 15): 52.9, (7, 8): 41.9,
}  # fmt: skip
DEPTH = 28


def run(lab: Lab) -> Study:
    """Measure the paper's ten pruning windows, scaled to this model's depth."""
    windows = {window: _scaled(window, lab.layers) for window in PAPER}
    methods = {"none": "none"}
    labels = {window: f"({scaled[0]}, {scaled[1]})" for window, scaled in windows.items()}
    methods |= {labels[window]: f"aim:retention=1,l1={l1},l2={l2}" for window, (l1, l2) in windows.items()}
    rows = lab.measure(methods)[1:]
    found = dict(zip(windows, rows, strict=True))
    unpruned = found[28, 29]
    change_of = {window: lab.difference(labels[window], labels[28, 29]) for window in windows}
    table = [
        [
            f"{windows[window][0]}, {windows[window][1]}", f"{window[0]}, {window[1]}", f"{row.visual_tokens:.1f}",
            percent(row.llm_share), accuracy_text(row),
            change(change_of[window]) if window != (28, 29) else "–",
            f"{PAPER[window]:.1f}", f"{PAPER[window] - PAPER[28, 29]:+.1f}",
        ]
        for window, row in found.items()
    ]  # fmt: skip
    late, early = change_of[21, 22], change_of[7, 8]
    harmless_late, harmful_early = not worse(late), worse(early)
    here = (
        f"Against all tokens in all layers ({points(unpruned):.1f} %), withdrawing everything late, window "
        f"{labels[21, 22]}, changes {change(late)} points; early, window {labels[7, 8]}, {change(early)}."
    )
    paper = "Late, window (21, 22) of 28 layers: +0.1 points; early, window (7, 8): -16.1. Visual tokens matter in early layers."
    return Study(
        name="layers",
        title=f"Pruning early or late ({lab.described})",
        header=["l1, l2\nhere", "l1, l2\npaper", "Tokens\nmean/layer", "LLM FLOPs\nof all", "Accuracy %", "Δ unpruned",
                "Paper\nVideoMME", "Paper\nΔ unpruned"],
        rows=table,
        here=here,
        paper=paper,
        verdict="agrees" if harmless_late and harmful_early else "partly agrees" if harmless_late or harmful_early else "differs",
        plot=lambda: _plot(found, windows),
        data=[
            {"l1": windows[window][0], "l2": windows[window][1], "accuracy": points(row), "llm_share": row.llm_share}
            for window, row in found.items()
        ],
    )  # fmt: skip


def _scaled(window: tuple[int, int], layers: int) -> tuple[int, int]:
    """The same share of this depth; one-layer windows stay one layer, what lies behind the last layer stays there."""
    l1 = round(window[0] * layers / DEPTH)
    if window[1] == window[0] + 1:
        return l1, l1 + 1
    return l1, layers + 1 if window[1] > DEPTH else max(l1 + 1, round(window[1] * layers / DEPTH))


def _plot(found: dict[tuple[int, int], Row], windows: dict[tuple[int, int], tuple[int, int]]) -> Any:
    drawn, axes = figure(5.6, 4.2)
    firsts = sorted({window[0] for window in windows.values()})
    lasts = sorted({window[1] for window in windows.values()})
    axes.grid(False)
    values = [points(row) for row in found.values()]
    for window, row in found.items():
        x, y = firsts.index(windows[window][0]), lasts.index(windows[window][1])
        shade = (points(row) - min(values)) / (max(values) - min(values) or 1)
        axes.add_patch(_square(x, y, shade))
        axes.text(x, y, f"{points(row):.1f}\n({PAPER[window]:.1f})", ha="center", va="center", fontsize=8,
                  color="white" if shade < 0.5 else "black")  # fmt: skip
    axes.set_xticks(range(len(firsts)), firsts)
    axes.set_yticks(range(len(lasts)), lasts)
    axes.set_xlim(-0.5, len(firsts) - 0.5)
    axes.set_ylim(-0.5, len(lasts) - 0.5)
    axes.set_xlabel("l1: pruning begins after this layer")
    axes.set_ylabel("l2: no visual token is left from here on")
    axes.set_title("Accuracy here, % (paper's VideoMME in brackets)", fontsize=10)
    return drawn


def _square(x: int, y: int, shade: float) -> Any:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colormaps["viridis"](shade))
