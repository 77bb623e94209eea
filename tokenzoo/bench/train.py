"""Train an embedded model from scratch: ``python -m tokenzoo.bench.train llava --minutes 60 --out DIR``.

Three stages: *cells* (decoder and oracle tokens, nine tokens a picture), *encoder* (encoder and projector learn to produce
the oracle tokens, which no longer change) and *patches* (decoder again, on as many oracle tokens as the model has visual
tokens). Decoder and encoder meet only in the result: trained jointly, they undid their agreement faster than they learnt. Every
minute the state goes to ``DIR/state.pt``: the same command resumes. The curve is ``DIR/log.jsonl``, the model ``DIR/model``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tokenzoo.bench.train_export import export
from tokenzoo.bench.train_models import adopt, build_llava, build_onevision
from tokenzoo.bench.train_sources import LLAVA_PICTURES, TILED_PICTURES, VIDEOS
from tokenzoo.bench.train_stages import Trainer

#: share of the time each stage gets
SHARES = {"cells": 0.6, "encoder": 0.12, "patches": 0.28}
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
        adopted = torch.load(arguments.adopt, weights_only=True)
        adopt(model, adopted["model"])
        trainer.oracle.load_state_dict(adopted["oracle"])
        trainer.heads.load_state_dict(adopted["heads"], strict=False)
    trainer.resume()
    plan = {stage: share * arguments.minutes for stage, share in SHARES.items()}
    if arguments.only:
        plan = {stage: float(minutes) for stage, minutes in (item.split("=") for item in arguments.only)}
    for stage, minutes in plan.items():
        trainer.run(stage, minutes)
    export(model, arguments.out / "model")


if __name__ == "__main__":
    main()
