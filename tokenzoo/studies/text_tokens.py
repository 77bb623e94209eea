"""Finding 4 of the paper: pruning text tokens hurts, at any layer.

A method never gets to prune text here, so this is an experiment of its own: from layer k on, a random half of the prompt's
text tokens (never the last) is hidden by mask from all later rows; beside it, a random half of the visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from tokenzoo.application import family_of
from tokenzoo.bench.evaluate import predict
from tokenzoo.bench.task import Prediction
from tokenzoo.comparison.identity import accuracy_identity
from tokenzoo.comparison.rows import TaskScore
from tokenzoo.comparison.summary import task_score
from tokenzoo.models.question import Question
from tokenzoo.report.plots import COLORS, figure
from tokenzoo.studies.common import Lab, Study, change, worse

SHARE = 0.5
KINDS = ("text", "visual")


def run(lab: Lab) -> Study:
    """Hide half of the text, or of the visual tokens, from layer k on, for several k."""
    layers = sorted({0, 1, 2, 3, 4, lab.layers // 2, 3 * lab.layers // 4, lab.layers - 1} & set(range(lab.layers)))
    lab.runner.progress.expect((1 + 2 * len(layers)) * sum(map(len, lab.questions.values())))
    none = _answers(lab, None, "none")
    scores = {kind: [task_score("all", _answers(lab, layer, kind), none) for layer in layers] for kind in KINDS}
    full = task_score("all", none, [])
    table = [["–", _text(full), "–", _text(full), "–"]] + [
        [str(layer), _text(text), _change(text), _text(visual), _change(visual)]
        for layer, text, visual in zip(layers, scores["text"], scores["visual"], strict=True)
    ]
    hurting = [layer for layer, score in zip(layers, scores["text"], strict=True) if _lost(score)]
    visual_hurting = [layer for layer, score in zip(layers, scores["visual"], strict=True) if _lost(score)]
    here = (
        f"Hiding half of the text significantly lowers accuracy when it begins at layer {_listed(hurting)} of the layers tried "
        f"({_listed(layers)}); hiding half of the visual tokens does at layer {_listed(visual_hurting)}."
    )
    paper = "Pruning text tokens hurts, at whatever layer it is done (no figures on the project page)."
    return Study(
        name="text-tokens",
        title=f"Hiding half of the text, or of the visual tokens, from layer k on ({lab.described})",
        header=["Layer k", "Text hidden\naccuracy %", "Δ all", "Visual hidden\naccuracy %", "Δ all"],
        rows=table,
        here=here,
        paper=paper,
        verdict="agrees" if hurting == layers else "partly agrees" if hurting else "differs",
        plot=lambda: _plot(layers, scores, full),
        notes=["In a small model with short prompts the last token has read the question after a few layers."],
        data=[
            {"layer": layer, "hidden": kind, "accuracy": score.accuracy.value}
            for kind in KINDS
            for layer, score in zip(layers, scores[kind], strict=True)
        ],
    )


def _answers(lab: Lab, layer: int | None, kind: str) -> list[Prediction]:
    """All questions' answers with half of one kind of tokens hidden from `layer` on; finished cells come from the store."""
    answers: list[Prediction] = []
    for task, asked in lab.questions.items():
        identity = accuracy_identity(
            lab.plan.checkpoint, lab.build("none"), task, asked, lab.runner.settings.seed, lab.runner.settings.batch_size
        )
        identity |= {"kind": "study", "method": f"hide {kind} from layer {layer}", "share": SHARE}
        lab.runner.progress.say(f"{identity['method']}: {task}")
        cell = lab.runner.cell(identity, len(asked), partial(_measured, lab, asked, layer, kind))
        answers += [Prediction(**answer) for answer in cell["answers"]]
    return answers


def _measured(lab: Lab, asked: Sequence[Question], layer: int | None, kind: str) -> dict[str, Any]:
    size, answers = lab.runner.settings.batch_size, []
    with hidden_tokens(lab.plan.checkpoint.model, layer, kind, SHARE, lab.runner.settings.seed):
        for start in range(0, len(asked), size):
            answers += [asdict(one) for one in predict(lab.plan.checkpoint, asked[start : start + size], size)]
            lab.runner.progress.advance(len(asked[start : start + size]))
    return {"answers": answers}


@contextmanager
def hidden_tokens(model: Any, layer: int | None, kind: str, share: float, seed: int) -> Iterator[None]:
    """In every call of the block, hide a random `share` of each sample's text (but the last token) or visual tokens.

    From decoder layer `layer` on no row attends to them but they themselves; None hides nothing. Works with sdpa and eager.
    """
    if layer is None:
        yield
        return
    family = family_of(model)
    decoder: Any = family.decoder(model)
    placeholders = [token for token in (family.token_id(model, "image"), family.token_id(model, "video")) if token is not None]
    generator = torch.Generator().manual_seed(seed)
    now: dict[str, torch.Tensor] = {}

    def begin(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, present = kwargs["input_ids"], kwargs["attention_mask"].bool()
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():  # decoding: what was hidden stays hidden from the new token
            seen = torch.cat([now["seen"], present[:, now["seen"].shape[1] :]], dim=1)
            now["mask"] = seen[:, None, None]
            return
        visual = torch.isin(ids, torch.tensor(placeholders, device=ids.device))
        candidates = present & (visual if kind == "visual" else ~visual)
        candidates[:, -1] = False
        hide = torch.zeros_like(candidates)
        for sample, row in enumerate(candidates.cpu()):
            choices = row.nonzero()[:, 0]
            picked = choices[torch.randperm(len(choices), generator=generator)[: round(share * len(choices))]]
            hide[sample, picked.to(hide.device)] = True
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=ids.device)
        now["seen"] = present & ~hide
        now["mask"] = ((causal & now["seen"][:, None]) | itself)[:, None]

    def enter(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states, mask = args[0] if args else kwargs["hidden_states"], now["mask"]
        if model.config.get_text_config()._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [one.register_forward_pre_hook(enter, with_kwargs=True) for one in decoder.layers[layer:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _text(score: TaskScore) -> str:
    interval = score.accuracy
    return f"{100 * interval.value:.1f} [{100 * interval.low:.0f} {100 * interval.high:.0f}]"


def _change(score: TaskScore) -> str:
    return change(score.difference) if score.difference else "–"


def _lost(score: TaskScore) -> bool:
    return score.difference is not None and worse(score.difference)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _plot(layers: Sequence[int], scores: dict[str, list[TaskScore]], full: TaskScore) -> Any:
    drawn, axes = figure()
    for index, kind in enumerate(KINDS):
        values = [100 * score.accuracy.value for score in scores[kind]]
        bars = [
            [100 * (score.accuracy.value - score.accuracy.low) for score in scores[kind]],
            [100 * (score.accuracy.high - score.accuracy.value) for score in scores[kind]],
        ]
        axes.errorbar(layers, values, yerr=bars, color=COLORS[index], marker="os"[index], capsize=2, linewidth=1.2,
                      label=f"half of the {kind} tokens hidden")  # fmt: skip
    axes.axhline(100 * full.accuracy.value, color="#888888", linestyle="--", linewidth=1, label="nothing hidden")
    axes.set_xlabel("From decoder layer k on")
    axes.set_ylabel("Accuracy, % (95 % interval)")
    axes.legend(fontsize=8, frameon=False)
    return drawn
