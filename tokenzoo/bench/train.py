"""Train an embedded model from scratch: ``python -m tokenzoo.bench.train llava --minutes 60 --out DIR``.

Four stages: *cells* (decoder alone on nine oracle tokens a picture), *patches* (the same on the real number of tokens),
*encoder* (encoder and projector alone, to produce the oracle tokens) and *joint* (everything, on rendered pictures). Every
minute the state goes to ``DIR/state.pt``: the same command resumes. The curve is ``DIR/log.jsonl``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tokenzoo.bench.train_models import adopt, build_llava, build_onevision
from tokenzoo.bench.train_sources import LLAVA_PICTURES, TILED_PICTURES, VIDEOS
from tokenzoo.bench.train_stages import Trainer

#: share of the time each stage gets
SHARES = {"cells": 0.2, "patches": 0.1, "encoder": 0.15, "joint": 0.55}
SOURCES = {"llava": (LLAVA_PICTURES,), "onevision": (VIDEOS, TILED_PICTURES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SOURCES))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adopt", type=Path, help="state.pt of a trained llava to start onevision from")
    parser.add_argument("--only", nargs="*", metavar="STAGE=MINUTES", help="run these stages for these minutes instead")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = build_llava() if arguments.model == "llava" else build_onevision()
    trainer = Trainer(model, SOURCES[arguments.model], arguments.out, arguments.seed)
    if arguments.adopt:
        adopted = torch.load(arguments.adopt, weights_only=False)
        adopt(model, adopted["model"])
        trainer.oracle.load_state_dict(adopted["oracle"])
        trainer.heads.load_state_dict(adopted["heads"], strict=False)
    trainer.resume()
    plan = {stage: share * arguments.minutes for stage, share in SHARES.items()}
    if arguments.only:
        plan = {stage: float(minutes) for stage, minutes in (item.split("=") for item in arguments.only)}
    for stage, minutes in plan.items():
        trainer.run(stage, minutes)


if __name__ == "__main__":
    main()
