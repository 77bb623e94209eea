"""Train an embedded model: ``python -m tokenzoo.training llava --minutes 60 --out DIR``.

Stages: *cells* (the decoder learns to look answers up in oracle tokens, nine a picture), *encoder* (encoder, summary and
projector learn to tell what pictures show, in oracle tokens) and *decoder* (the decoder reads the encoder's tokens, whole or
reduced in generic ways; the encoder no longer changes). Trained jointly, encoder and decoder undid their agreement faster than
they learnt. In the decoder's first two layers the text surveys the picture: its attention is led to all objects alike, as the
encoder's is, and half of the time it does not see reduced tokens there. Later layers read what a question asks for, as in large
models, where that is the middle ones: they are taught to look at the object that it names, and then at the one that answers.

``--start CHECKPOINT`` continues from a trained model and leaves *cells* out: its oracle tokens are read off its own visual
tokens; ``--later 2`` moves its decoder's layers two down, so that they read the picture later at once. Every minute the state
goes to ``DIR/state.pt``: the same command resumes. The log is ``DIR/log.jsonl``, the model ``DIR/model``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tokenzoo.training.export import export
from tokenzoo.training.shapes import BUILD, continue_from
from tokenzoo.training.sources import LLAVA_PICTURES, TILED_PICTURES, VIDEOS
from tokenzoo.training.stages import Trainer

#: Share of the time each stage gets.
SHARES = {"cells": 0.4, "encoder": 0.2, "decoder": 0.4}
SHARES_CONTINUED = {"encoder": 0.22, "decoder": 0.78}
SOURCES = {"llava": (LLAVA_PICTURES,), "onevision": (VIDEOS, TILED_PICTURES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SOURCES))
    parser.add_argument("--minutes", type=float, default=60, help="of processor time")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint of the same shape")
    parser.add_argument("--later", type=int, default=0, help="move that checkpoint's decoder layers so many down")
    parser.add_argument("--stage", choices=sorted(SHARES), help="train this stage alone")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = BUILD[arguments.model]()
    trainer = Trainer(model, SOURCES[arguments.model], arguments.out, arguments.seed)
    if not trainer.resume() and arguments.start:
        continue_from(model, arguments.start, arguments.later)
        print(f"oracle tokens explain {trainer.fit_oracle():.1%} of the variance of its visual tokens", flush=True)
    shares = SHARES_CONTINUED if arguments.start else SHARES
    for stage, share in ({arguments.stage: 1.0} if arguments.stage else shares).items():
        trainer.run(stage, share * arguments.minutes)
        export(model, arguments.out / "model")


if __name__ == "__main__":
    main()
