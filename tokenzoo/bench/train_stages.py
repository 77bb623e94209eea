"""The training loop and its three stages; see `train` for what they are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokenzoo.bench import train_data as data
from tokenzoo.bench.scenes import FRAMES
from tokenzoo.bench.tasks import TRAINING
from tokenzoo.bench.train_encoder import PatchHeads, alignment, encode, pixels
from tokenzoo.bench.train_models import HIDDEN
from tokenzoo.bench.train_oracle import OracleTokens
from tokenzoo.bench.train_sources import POOLED_SIDE, Source

QUESTIONS = 16
#: samples in a step, by stage and by frames in a sample
BATCH = {("cells", 1): 10, ("cells", 8): 8, ("patches", 1): 8, ("patches", 8): 6}
BATCH |= {("encoder", 1): 32, ("encoder", 8): 4}
RATES = {"cells": 1e-3, "patches": 7e-4, "encoder": 1e-3}
WARM_UP = 50  #: steps
ORACLE_NOISE = 0.02
HELP_WEIGHT = 0.3  #: of what is asked of the decoder's inner layers
FRAME_LAYER = 3
PASSED = 0.9  #: when the median kind of question is answered so often, the scenes get harder


class Progress:
    """Running accuracy of every kind of question of one source, and the difficulty reached."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.level = 0
        self.accuracy = np.zeros(len(source.functions))

    def weights(self) -> np.ndarray:
        """How often each kind is asked: mostly what is not known yet."""
        return np.maximum(0.02, (1.05 - self.accuracy) ** 2)

    def record(self, kinds: torch.Tensor, right: torch.Tensor) -> None:
        for kind in range(len(self.accuracy)):
            asked = kinds == kind
            if asked.any():
                self.accuracy[kind] += 0.03 * (right[asked].float().mean().item() - self.accuracy[kind])
        if np.median(self.accuracy) > PASSED and self.level + 1 < len(self.source.levels):
            self.level += 1
            self.accuracy *= 0.85


class Trainer:
    """A model under training with its oracle tokens, probes, log and state file.

    :param sources: what the model is asked about, drawn from in turn
    :param folder: where ``state.pt`` and ``log.jsonl`` go
    """

    def __init__(self, model: Any, sources: Sequence[Source], folder: Path, seed: int) -> None:
        self.model, self.sources, self.folder = model, sources, folder
        self.oracle, self.heads = OracleTokens(HIDDEN), PatchHeads(HIDDEN)
        self.progress = [Progress(source) for source in sources]
        self.done: dict[str, float] = {}  #: minutes spent in each stage
        self.step = 0
        self.seed = seed
        self.resumed: dict = {}  #: the state that training continues from
        self.seen = 0.0  #: running share of object patches that the encoder tells right
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        """Continue from ``state.pt`` if there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.oracle.load_state_dict(state["oracle"])
        self.heads.load_state_dict(state["heads"], strict=False)
        self.done, self.step, self.resumed = state["done"], state["step"], state
        for progress, (level, accuracy) in zip(self.progress, state["progress"], strict=True):
            progress.level, progress.accuracy = level, np.array(accuracy)

    def save(self) -> None:
        state: dict[str, Any] = dict(
            model=self.model.state_dict(), oracle=self.oracle.state_dict(), heads=self.heads.state_dict()
        )
        state |= dict(done=self.done, step=self.step, stage=self.optimizing[0], optimizer=self.optimizing[1].state_dict())
        state["progress"] = [(progress.level, progress.accuracy.tolist()) for progress in self.progress]
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    def run(self, stage: str, minutes: float) -> None:
        """Train one stage until it has had its minutes in all, earlier runs included."""
        parameters = [parameter for parameter in self._trained(stage) if parameter.requires_grad]
        groups = [dict(params=[p for p in parameters if p.ndim > 1], weight_decay=0.05)]
        groups += [dict(params=[p for p in parameters if p.ndim < 2], weight_decay=0.0)]
        optimizer = torch.optim.AdamW(groups, lr=RATES[stage], betas=(0.9, 0.95))
        if self.resumed.get("stage") == stage:
            optimizer.load_state_dict(self.resumed["optimizer"])
        self.optimizing = (stage, optimizer)
        self.rng = np.random.default_rng([TRAINING, self.seed, self.step])  # a resumed run sees new scenes
        spent, begun, saved, first = self.done.get(stage, 0.0), time.time(), time.time(), self.step
        while self.done.get(stage, 0.0) < minutes:
            rate = RATES[stage] * min(1, (self.step - first + 1) / WARM_UP)
            if stage != "cells":  # a cosine decay
                rate *= 0.05 + 0.95 * (1 + np.cos(np.pi * self.done.get(stage, 0.0) / minutes)) / 2
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            turn = self.step % len(self.sources)
            loss = self._loss(stage, self.sources[turn], self.progress[turn])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.step += 1
            self.done[stage] = spent + (time.time() - begun) / 60
            if self.step % 25 == 0:
                self._log(stage, loss.item())
            if time.time() - saved > 60:
                self.save()
                saved = time.time()
        self.save()

    def _trained(self, stage: str) -> list[nn.Parameter]:
        model = self.model.model
        probes = [p for name, p in self.heads.named_parameters() if not name.startswith("frame.")]
        vision = [*model.vision_tower.parameters(), *model.multi_modal_projector.parameters(), *probes]
        text = [*model.language_model.parameters(), *self.model.lm_head.parameters(), *self.heads.frame.parameters()]
        text += [parameter for name, parameter in model.named_parameters() if name == "image_newline"]
        oracle = [] if "encoder" in self.done else [*self.oracle.parameters()]  # what an encoder has learnt to say stays
        stages = {"cells": text + oracle, "patches": text, "encoder": vision}
        return stages[stage]

    def _loss(self, stage: str, source: Source, progress: Progress) -> torch.Tensor:
        size = BATCH[stage, source.frames]
        if stage == "encoder":
            return self._vision_loss(source, [source.sample(self.rng, **source.crowded) for _ in range(size)])
        levels = self.rng.integers(0, progress.level + 1, size)  # easier scenes stay in the mix
        samples = [source.sample(self.rng, **source.levels[level]) for level in levels]
        shown = torch.from_numpy(source.shown(samples))
        if stage == "cells":
            tokens, positions = source.cell_tokens(self.oracle, shown)
        else:
            tokens, positions = source.all_tokens(self.oracle(shown), self.model)
        tokens = tokens + ORACLE_NOISE * torch.randn_like(tokens)
        asked = data.ask(samples, source.functions, progress.weights(), QUESTIONS, self.rng)
        packed = data.pack(asked, positions, source.span)
        logits, states = data.read(self.model, tokens, packed)
        progress.record(packed.kinds, logits.argmax(-1) == packed.answers)
        loss = F.cross_entropy(logits.flatten(0, 1), packed.answers.flatten())
        loss = loss + HELP_WEIGHT * data.hint_loss(self.model, states, packed)
        if source.frames > 1:
            loss = loss + HELP_WEIGHT * self._frame_loss(states[FRAME_LAYER], positions)
        return loss

    def _frame_loss(self, states: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        """Visual tokens must know early which frame they are from; only their positions tell."""
        frames = torch.from_numpy(positions // POOLED_SIDE**2)
        shown = frames < FRAMES  # all but the newline that ends a video
        visual = states[:, len(data.PREFIX) : len(data.PREFIX) + len(positions)][:, shown]
        logits = self.heads.frame(F.layer_norm(visual, visual.shape[-1:]))
        return F.cross_entropy(logits.flatten(0, 1), frames[shown].repeat(len(states)))

    def _vision_loss(self, source: Source, samples: list) -> torch.Tensor:
        """How far the encoder is from telling what the patches show, and the projector from saying it in oracle tokens."""
        shown = torch.from_numpy(source.shown(samples))
        features, summary = encode(self.model, pixels(source.pictures(samples)))
        loss, seen = self.heads.loss(features, summary, shown)
        self.seen += 0.05 * (seen - self.seen)
        return loss + alignment(self.model.model.multi_modal_projector(features), self.oracle(shown), shown)

    def _log(self, stage: str, loss: float) -> None:
        row = dict(stage=stage, minutes=round(sum(self.done.values()), 2), step=self.step, loss=round(loss, 4))
        row["seen"] = round(self.seen, 3)
        for progress in self.progress:
            row[f"{progress.source.name}_level"] = progress.level
            names = [function.__name__ for function in progress.source.functions]
            row |= {name: round(float(value), 3) for name, value in zip(names, progress.accuracy, strict=True)}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
