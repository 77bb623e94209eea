"""What the first page shows, made by the tool: a table and a plot of all methods, and a picture and a video as each sees them.

tokenzoo compare --methods all --limit 20 --no-timing --out DIR
python docs/showcase.py DIR    # the table and the plots
python docs/showcase.py        # the gallery

The photograph is of Grace Hopper, by James S. Davis, U.S. Navy: public domain, and matplotlib ships it. The video is the first of
the task `order`'s drawn scenes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.cbook
from PIL import Image

from tokenzoo import cli
from tokenzoo.bench.tasks import builtin_tasks
from tokenzoo.zoo.describe import describe
from tokenzoo.zoo.plugins import load_zoo

DOCS = Path(__file__).parent
OUT = DOCS / "showcase"
#: The budget of the table.
BUDGET = "33%"
#: Pixels across a gallery's pictures, and how wide they stand on the page.
WIDTHS = {"image": 640, "video": 960}
SHOWN = {"image": "32%", "video": "100%"}
#: It needs a CLIP text tower, which the embedded models have none of.
NOT_SHOWN = ("cdpruner",)
BEGIN, END = "<!-- {}: made by docs/showcase.py -->", "<!-- end of {} -->"


def main(results: Path | None) -> None:
    """Write the gallery or, of a comparison's results, the plots and the table; and the parts of index.md that show them."""
    OUT.mkdir(exist_ok=True)
    if results is None:
        with tempfile.TemporaryDirectory() as folder:
            return replace("gallery", gallery(Path(folder)))
    sections = json.loads((results / "comparison.json").read_text(encoding="utf-8"))["sections"]
    plots = []
    for section in sections:
        kind, stem = section["kind"], f"pareto-{section['model']}-{section['kind']}".replace(":", "-")
        shrink(results / f"{stem}.png", OUT / f"pareto-{kind}.png", 1024)
        plots.append(f"![Accuracy and FLOPs of every method, {kind}s](showcase/pareto-{kind}.png)")
    replace("table", table(sections))
    replace("plots", plots)


def inputs(folder: Path) -> dict[str, list[str]]:
    """The options of show-kept that name the picture and the video, with a question about each."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        Image.open(file).convert("RGB").crop((40, 0, 512, 472)).save(folder / "photograph.png")
    task = next(task for task in builtin_tasks() if task.modality == "video")
    (question,) = task.questions(1)
    (folder / "video").mkdir()
    for index, frame in enumerate(question.video):
        frame.save(folder / "video" / f"{index}.png")
    return {
        "image": ["--image", str(folder / "photograph.png")],
        "video": ["--video", str(folder / "video"), "--question", question.prompt],
    }


def at_budget(section: dict[str, Any]) -> list[dict[str, Any]]:
    """The unreduced model and every method set to the budget, the refused ones last."""
    rows = [row for row in section["rows"] if row["method"] == "none" or row["budget"].startswith(BUDGET)]
    return sorted(rows, key=lambda row: row["overall"] is None)


def gallery(folder: Path) -> list[str]:
    """What `show-kept` draws of every method that runs on the embedded models with its defaults."""
    zoo, lines = load_zoo((), ()), []
    for kind, options in inputs(folder).items():
        lines += [f"### The {kind}", ""]
        for name in zoo.names():
            drawn = folder / f"{kind}-{name}.png"
            if name in NOT_SHOWN or kind not in describe(zoo, name).reduces:
                continue
            if cli.run(["show-kept", "--method", name, *options, "--out", str(drawn)]):
                raise SystemExit(f"show-kept failed for {name}.")
            shrink(drawn, OUT / drawn.name, WIDTHS[kind])
            lines.append(f"![{name}, {kind}](showcase/{drawn.name}){{ loading=lazy width={SHOWN[kind]} }}")
        lines.append("")
    return lines


def shrink(source: Path, target: Path, width: int) -> None:
    """A picture of at most this width in 64 colours."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((width, width * 4))
    picture.quantize(64).save(target, optimize=True)


def table(sections: list[dict[str, Any]]) -> list[str]:
    """Both models' rows at the budget, in the order of the methods."""
    named = [{row["method"]: row for row in at_budget(section)} for section in sections]
    asked = [next(row["overall"]["questions"] for row in rows.values() if row["overall"]) for rows in named]
    heads = [f"{section['kind']}s: accuracy, LLM FLOPs" for section in sections]
    lines = ["| Method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method in dict.fromkeys(method for rows in named for method in rows):
        lines.append(f"| [`{method}`](methods.md#{method}) | " + " | ".join(cell(rows.get(method)) for rows in named) + " |")
    counted = " and ".join(f"{count} questions about {section['kind']}s" for count, section in zip(asked, sections, strict=True))
    return [*lines, "", f"{counted}; brackets are 95 % intervals."]


def cell(row: dict[str, Any] | None) -> str:
    """Accuracy with its interval and the share of the FLOPs, in percent; else why there is none."""
    if row is None:
        return "–"
    if row["overall"] is None:
        return row["status"]
    found = row["overall"]["accuracy"]
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}], {row['llm_share']:.0%}".replace("%", " %")


def replace(part: str, lines: list[str]) -> None:
    """Put lines between a part's marks in index.md."""
    page = DOCS / "index.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN.format(part))
    after = rest.split(END.format(part))[1]
    text = "\n".join(lines).strip()
    page.write_text(f"{before}{BEGIN.format(part)}\n\n{text}\n\n{END.format(part)}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
