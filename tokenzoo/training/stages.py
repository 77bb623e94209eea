"""The training loop and its stages; see `__main__` for what they are."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokenzoo.bench.tasks import TRAINING
from tokenzoo.training import data
from tokenzoo.training.encoder import Heads, alignment, attention_loss, encode, led, objects_on_top, pixels, recorded, salience
from tokenzoo.training.oracle import OracleTokens, per_cell
from tokenzoo.training.shapes import HIDDEN
from tokenzoo.training.sources import Source, pictures, scenes_of, shown

QUESTIONS = 16
BATCH = {"cells": 10, "encoder": 32, "decoder": 8}  #: samples in a step; videos of eight frames count as one
RATES = {"cells": 1e-3, "encoder": 8e-4, "decoder": 4e-4}
PROJECTOR_RATE = 0.25  #: of the decoder's rate
WARM_UP = 50  #: steps
ORACLE_NOISE = 0.02
HELP_WEIGHT = 0.3  #: of what is asked of the decoder's inner layers
STOP_WEIGHT = 0.1
ATTENTION_WEIGHT = 0.3
SURVEY_WEIGHT = 0.2
GROUNDING_WEIGHT = 0.2
BLIND = 0.5  #: how often the text does not see reduced tokens in the layers that survey the picture
SAVE_EVERY = 60  #: seconds
LOG_EVERY = 25  #: steps


class Progress:
    """Running accuracy of every kind of question of one source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.accuracy = np.full(len(source.functions), 0.5)

    def weights(self) -> np.ndarray:
        """How often each kind is asked: mostly what is not known yet."""
        return np.maximum(0.02, (1.05 - self.accuracy) ** 2)

    def record(self, kinds: torch.Tensor, right: torch.Tensor) -> None:
        for kind in range(len(self.accuracy)):
            asked = kinds == kind
            if asked.any():
                self.accuracy[kind] += 0.03 * (right[asked].float().mean().item() - self.accuracy[kind])


class Trainer:
    """A model under training with its oracle tokens, probes, log and state file.

    :param sources: what the model is asked about, drawn from in turn
    :param folder: where ``state.pt`` and ``log.jsonl`` go
    """

    def __init__(self, model: Any, sources: Sequence[Source], folder: Path, seed: int) -> None:
        self.model, self.sources, self.folder, self.seed = model, sources, folder, seed
        model.set_attn_implementation("eager")  # on a CPU the backward pass of PyTorch's fused kernel takes twice as long
        self.oracle, self.heads = OracleTokens(HIDDEN), Heads(HIDDEN)
        self.turns = [index for index, source in enumerate(sources) for _ in range(source.turns)]
        self.progress = [Progress(source) for source in sources]
        self.ways: defaultdict[str, float] = defaultdict(lambda: 0.5)  #: running accuracy by source and reduction
        self.done: dict[str, float] = {}  #: minutes of processor time spent in each stage
        self.step = 0
        self.resumed: dict = {}  #: the state that training continues from
        self.seen = 0.0  #: running share of object patches that the encoder tells right
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """Continue from ``state.pt`` if there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.oracle.load_state_dict(state["oracle"])
        self.heads.load_state_dict(state["heads"])
        self.done, self.step, self.resumed = state["done"], state["step"], state
        self.ways.update(state["ways"])
        for progress, accuracy in zip(self.progress, state["progress"], strict=True):
            progress.accuracy = np.array(accuracy)
        return True

    def save(self) -> None:
        parts = dict(model=self.model, oracle=self.oracle, heads=self.heads, optimizer=self.optimizing[1])
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= dict(done=self.done, step=self.step, stage=self.optimizing[0], ways=dict(self.ways))
        state["progress"] = [progress.accuracy.tolist() for progress in self.progress]
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    @torch.no_grad()
    def fit_oracle(self) -> float:
        """Read the oracle tokens off a trained model's visual tokens of pictures; returns the share of variance explained."""
        rng = np.random.default_rng([TRAINING, self.seed, 0])
        scenes = [self.sources[-1].sample(rng, shape_sizes={2: 1.0}, digit_sizes={2: 1.0}) for _ in range(300)]
        labels, _ = shown(scenes)
        features, _ = encode(self.model, pixels(pictures(scenes)))
        return self.oracle.fit(self.model.model.multi_modal_projector(features), labels)

    def run(self, stage: str, minutes: float) -> None:
        """Train one stage until it has had its minutes of processor time in all, earlier runs included."""
        parameters, optimizer = self._optimizer(stage)
        if self.resumed.get("stage") == stage:
            optimizer.load_state_dict(self.resumed["optimizer"])
        self.optimizing = (stage, optimizer)
        self.rng = np.random.default_rng([TRAINING, self.seed, 1 + self.step])  # a resumed run sees new scenes
        torch.manual_seed(self.seed + self.step)
        spent, begun, saved, first = self.done.get(stage, 0.0), time.process_time(), time.time(), self.step
        while self.done.get(stage, 0.0) < minutes:
            part = self.done.get(stage, 0.0) / minutes
            rate = min(1, (self.step - first + 1) / WARM_UP) * (0.03 + 0.97 * (1 + np.cos(np.pi * part)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = float(rate * group["top"])
            with torch.autocast("cpu", torch.bfloat16):
                loss = self._loss(stage)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.step += 1
            self.done[stage] = spent + (time.process_time() - begun) / 60
            if self.step % LOG_EVERY == 0:
                self._log(stage, loss.item())
            if time.time() - saved > SAVE_EVERY:
                self.save()
                saved = time.time()
        self.save()

    def _optimizer(self, stage: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        model = self.model.model
        text = [*model.language_model.parameters(), *self.model.lm_head.parameters()]
        text += [parameter for name, parameter in model.named_parameters() if name == "image_newline"]
        projector = [*model.multi_modal_projector.parameters()]
        vision = [*model.vision_tower.parameters(), *projector, *self.heads.parameters()]
        rate = RATES[stage]
        trained = {
            "cells": [(text, rate), ([*self.oracle.parameters()], rate)],
            "encoder": [(vision, rate)],
            "decoder": [(text, rate), (projector, PROJECTOR_RATE * rate)],
        }[stage]
        groups = []
        for parameters, top in trained:
            for plain in (False, True):
                own = [p for p in parameters if (p.ndim < 2) == plain]
                groups.append(dict(params=own, weight_decay=0.0 if plain else 0.05, top=top))
        everything = [p for parameters, _ in trained for p in parameters]
        return everything, torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))

    def _loss(self, stage: str) -> torch.Tensor:
        if stage == "encoder":
            return self._vision_loss()
        turn = self.turns[self.step % len(self.turns)]
        source, progress = self.sources[turn], self.progress[turn]
        samples = source.samples(self.rng, BATCH[stage])
        scenes = [scene for sample in samples for scene in scenes_of(sample)]
        if stage == "cells":
            labels, times = shown(scenes)
            tokens = self.oracle(per_cell(labels), times)
            tokens = tokens.unflatten(0, (len(samples), -1)).flatten(1, 2)
            tokens = tokens + ORACLE_NOISE * torch.randn_like(tokens)
            places, way = torch.arange(tokens.shape[1]).expand(len(tokens), -1), "cells"
        else:
            images = np.concatenate([pictures(scenes_of(sample)) for sample in samples])
            with torch.no_grad():
                features, _ = encode(self.model, pixels(images))
            projected = self.model.model.multi_modal_projector(features).unflatten(0, (len(samples), -1))
            tokens, places, way = source.lay_out(projected.float(), self.model, self.rng)
        asked = data.ask(samples, source.functions, progress.weights(), QUESTIONS, self.rng)
        packed = data.pack(asked, places)
        blind = way not in ("cells", "full") and self.rng.random() < BLIND
        logits, states, attentions = data.read(self.model, tokens, packed, blind)
        right = logits.argmax(-1) == packed.answers
        if way in ("cells", "full"):
            progress.record(packed.kinds, right)
        name = f"{source.name}: {way}"
        self.ways[name] += 0.03 * (right.float().mean().item() - self.ways[name])
        loss = F.cross_entropy(logits.flatten(0, 1), packed.answers.flatten())
        if way == "full":
            labels, _ = shown(scenes)
            marks = torch.stack([salience(labels), labels[:, 0].flatten(1).float()], -1).unflatten(0, (len(samples), -1))
            salient, kinds = source.whole(marks, self.model, torch.zeros(2)).unbind(-1)
            loss = loss + SURVEY_WEIGHT * data.survey_loss(attentions, led(salient), packed)
            loss = loss + GROUNDING_WEIGHT * data.grounding_loss(attentions, kinds.round().long(), asked, packed)
        loss = loss + STOP_WEIGHT * data.stop_loss(self.model, states, packed)
        return loss + HELP_WEIGHT * data.hint_loss(self.model, states, packed)

    def _vision_loss(self) -> torch.Tensor:
        """How far the encoder is from telling what the pictures show, and the projector from saying it in oracle tokens."""
        each = BATCH["encoder"] // len(self.sources)
        scenes = [scene for source in self.sources for scene in source.single(self.rng, each)]
        labels, times = shown(scenes)
        with recorded(self.model) as records:
            features, summary = encode(self.model, pixels(pictures(scenes)))
        loss, seen = self.heads.loss(features, summary, labels, times)
        self.seen += 0.05 * (seen - self.seen)
        loss = loss + ATTENTION_WEIGHT * attention_loss(self.model, records, labels)
        projected = self.model.model.multi_modal_projector(features)
        return loss + alignment(projected, self.oracle(labels, times), labels)

    def _log(self, stage: str, loss: float) -> None:
        row = dict(stage=stage, minutes=round(sum(self.done.values()), 2), step=self.step, loss=round(loss, 4))
        row["seen"] = round(self.seen, 3)
        if stage == "encoder" and self.step % (20 * LOG_EVERY) == 0:
            scenes = self.sources[-1].single(np.random.default_rng([TRAINING, self.seed, 0]), 32)
            shares = objects_on_top(self.model, pixels(pictures(scenes)), shown(scenes)[0])
            row["on_top"] = [{name: round(share, 2) for name, share in layer.items()} for layer in shares]
        for progress in self.progress:
            names = [function.__name__ for function in progress.source.functions]
            row |= {name: round(float(value), 3) for name, value in zip(names, progress.accuracy, strict=True)}
        row |= {name: round(value, 3) for name, value in self.ways.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
