"""Draw a training log: ``python -m tokenzoo.training.curve DIR/log.jsonl curve.png``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BOOKKEEPING = ("stage", "minutes", "step", "loss", "seen", "on_top")
SEEN = "object patches told right (encoder)"


def draw(log: Path, picture: Path) -> None:
    """Running accuracy of each kind of question, each way of reducing and the encoder; a grey line where a stage begins."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
    decoder = [row for row in rows if row["stage"] != "encoder"]
    for name in [key for key in rows[-1] if key not in BOOKKEEPING]:
        points = [(row["step"], row[name]) for row in decoder if name in row]
        style = ":" if ": " in name else "-"  # a way of reducing, or a kind of question
        axes.plot(*zip(*points, strict=True), style, label=name.replace("_", " "), linewidth=1.2)
    points = [(row["step"], row["seen"]) for row in rows if row["stage"] == "encoder"]
    axes.plot(*zip(*points, strict=True), "k.", label=SEEN, markersize=4)
    for previous, row in zip([{}, *decoder], decoder, strict=False):
        if previous.get("stage") != row["stage"]:
            axes.axvline(row["step"], color="0.7", linewidth=0.8)
            axes.text(row["step"], 1.01, row["stage"], fontsize=8, rotation=30)
    axes.set(xlabel="training step", ylabel="running accuracy on training scenes", ylim=(0, 1))
    axes.legend(fontsize=7, loc="lower center", ncols=3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
