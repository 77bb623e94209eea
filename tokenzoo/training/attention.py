"""Where a trained encoder looks: ``python -m tokenzoo.training.attention llava`` (or a checkpoint's folder).

Prints, over held-out scenes, the share of object patches that are in the quarter of patches with most attention, by layer and by
the way attention is read; chance is 25 %.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from tokenzoo.bench.scenes import sample_scene
from tokenzoo.bench.tasks import HELD_OUT
from tokenzoo.bench.video_scenes import sample_video
from tokenzoo.models.checkpoint import load
from tokenzoo.training.encoder import objects_on_top, pixels
from tokenzoo.training.sources import pictures, shown


def measure(model: Any, count: int, video: bool) -> list[dict[str, float]]:
    """The shares for each layer on `count` held-out pictures, or on one frame each of so many videos."""
    scenes = []
    for index in range(count):
        rng = np.random.default_rng([HELD_OUT, 0, index])
        scenes.append(sample_video(rng).frames[index % 8] if video else sample_scene(rng))
    return objects_on_top(model, pixels(pictures(scenes)), shown(scenes)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="llava, onevision, or a checkpoint's folder")
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    name = f"embedded:{arguments.model}" if arguments.model in ("llava", "onevision") else arguments.model
    model = load(name, device="cpu").model
    for video in (False, True)[: 1 + (model.config.model_type == "llava_onevision")]:
        print("frames of videos" if video else "pictures")
        for number, shares in enumerate(measure(model, arguments.scenes, video)):
            print(f"  layer {number}:", ", ".join(f"{way} {100 * share:.0f} %" for way, share in shares.items()))


if __name__ == "__main__":
    main()
