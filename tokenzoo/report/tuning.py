"""What a search of parameters found: in a few lines, as a plot, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenzoo.comparison.tuning import Tuning
from tokenzoo.report.files import write_text
from tokenzoo.report.plots import pareto, save


def lines(tuning: Tuning) -> list[str]:
    """What to say below the table."""
    ran = [trial for trial in tuning.trials if trial.accuracy is not None]
    first, gain = tuning.trials[0], tuning.gain
    was = "does not run at this budget" if first.accuracy is None else f"{100 * first.accuracy:.1f} %"
    said = [
        f"Tuned on {tuning.calibration} other questions, {len(ran)} of {len(tuning.trials)} settings ran: best "
        f"{100 * (tuning.best.accuracy or 0):.1f} %, as written {was}.",
        f"Best: {tuning.best.specification}",
    ]
    if gain is not None:
        said.append(
            f"On the unseen questions above: {100 * gain.value:+.1f} points [{100 * gain.low:+.1f} {100 * gain.high:+.1f}] to "
            f"the method as written{'' if gain.significant else ', no more than chance may give'}."
        )
    return said


def plot(tuning: Tuning) -> Any:
    """The rows on unseen questions, and every trial on the questions that were tuned on."""
    drawn = pareto(tuning.section)
    axes = drawn.axes[0]
    ran = [trial for trial in tuning.trials if trial.accuracy is not None and trial.llm_share is not None]
    axes.plot(
        [100 * (trial.llm_share or 0) for trial in ran], [100 * (trial.accuracy or 0) for trial in ran], ".", color="#888888",
        markersize=4, zorder=0, label="trials (tuned on)",
    )  # fmt: skip
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return drawn


def write(tuning: Tuning, directory: Path) -> None:
    """`tuning.png`, `tuning.pdf` and `tuning.json`."""
    drawn = plot(tuning)
    for ending in ("png", "pdf"):
        save(drawn, directory / f"tuning.{ending}")
    unseen = [
        {"method": row.specification, "accuracy": row.overall.accuracy.value if row.overall else None, "llm_share": row.llm_share}
        for row in tuning.section.rows
    ]
    found = {
        "method": tuning.method,
        "best": tuning.best.specification,
        "gain": vars(tuning.gain) if tuning.gain else None,
        "trials": [vars(trial) for trial in tuning.trials],
        "unseen": unseen,
    }
    write_text(directory / "tuning.json", json.dumps(found, indent=1) + "\n")
