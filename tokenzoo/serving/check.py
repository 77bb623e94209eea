"""The same questions through Hugging Face with `tokenzoo.apply` and through vLLM: kept tokens, answers, vLLM's speed."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from statistics import median
from typing import Any

import numpy as np
import torch

from tokenzoo.application import apply
from tokenzoo.errors import FailedError, UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.inputs import FRAME_RATE, metadata, prompt_text
from tokenzoo.models.media import first_line
from tokenzoo.models.names import locate
from tokenzoo.models.question import Question
from tokenzoo.serving.encoding import fingerprint, pixels_of
from tokenzoo.serving.served import KEY

#: Questions asked one by one, whose first token is waited for.
ALONE = 16
#: What became of each token of a picture, by the picture's fingerprint.
Kept = dict[str, list[int] | None]


@dataclass(frozen=True)
class Answer:
    """One question: its prompt's tokens after the reduction, the greedy answer's tokens, its pictures where they are known."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """What one of the two made of all questions. vLLM's also has requests per second, and seconds to the first token."""

    answers: list[Answer]
    kept: Kept
    rate: float = 0.0
    first_token: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Both sides under one method.

    `pictures`: how many the method reduced; `kept`: of how many it left the same tokens. `moved`, `differing`: the questions with
    pictures of which other tokens are left, and those that are answered differently.
    """

    method: str
    ours: Side
    served: Side

    @property
    def pictures(self) -> int:
        return sum(assignment is not None for assignment in self.ours.kept.values())

    @property
    def kept(self) -> int:
        return sum(self._same(picture) for picture, assignment in self.ours.kept.items() if assignment is not None)

    @property
    def moved(self) -> list[int]:
        seen = [answer.pictures for answer in self.ours.answers]
        return [index for index, pictures in enumerate(seen) if not all(map(self._same, pictures))]

    @property
    def prompts(self) -> int:
        """Questions whose prompt has as many tokens."""
        return sum(one.prompt_tokens == other.prompt_tokens for one, other in self._pairs)

    @property
    def differing(self) -> list[int]:
        return [index for index, (one, other) in enumerate(self._pairs) if one.tokens != other.tokens]

    def _same(self, picture: str) -> bool:
        return self.ours.kept[picture] is None or self.served.kept.get(picture) == self.ours.kept[picture]

    @property
    def _pairs(self) -> list[tuple[Answer, Answer]]:
        return list(zip(self.ours.answers, self.served.answers, strict=True))


def in_transformers(checkpoint: Checkpoint, pipeline: Pipeline, questions: Sequence[Question], new_tokens: int) -> Side:
    """Ask one question after the other, with the method at work in the Hugging Face model."""
    answers, kept = [], {}
    for question in questions:
        inputs = checkpoint.inputs([question])
        with apply(checkpoint.model, pipeline, **checkpoint.words([question])) as run, torch.inference_mode():
            made = checkpoint.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        (sample,) = run.trace.samples
        pictures = [map(fingerprint, pixels_of(inputs, kind)) for kind in ("image", "video") if _shown(inputs, kind)]
        seen = [picture for of_kind in pictures for picture in of_kind]
        kept.update({picture: source.assignment for picture, source in zip(seen, sample.sources, strict=True)})
        tokens = made[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(Answer(len(sample.entry), until_end(tokens, checkpoint), tuple(seen)))
    return Side(answers, kept)


@dataclass(frozen=True)
class Rounding:
    """Of the questions that differ between the two, how many differ between two attention backends of transformers as well:
    with other tokens kept, and with another answer."""

    moved: int = 0
    differing: int = 0


def rounding(row: Comparison, eager: Checkpoint, pipeline: Pipeline, questions: Sequence[Question], new_tokens: int) -> Rounding:
    """Ask a second model, the same with another attention backend, what differs: where two tokens, or two answers, are equally
    good, rounding chooses."""
    moved, differing = row.moved, row.differing
    wanted = sorted({*moved, *differing})
    side = in_transformers(eager, pipeline, [questions[index] for index in wanted], new_tokens)
    again, ours = dict(zip(wanted, side.answers, strict=True)), row.ours
    unsure = [i for i in moved if any(side.kept[picture] != ours.kept[picture] for picture in ours.answers[i].pictures)]
    return Rounding(len(unsure), sum(again[i].tokens != ours.answers[i].tokens for i in differing))


def in_vllm(engine: Engine, checkpoint: Checkpoint, questions: Sequence[Question], new_tokens: int) -> Side:
    """Ask vLLM: some questions one by one, for the time to the first token, then all at once."""
    from vllm import SamplingParams

    prompts = [prompt_of(checkpoint, question) for question in questions]
    greedy = SamplingParams(temperature=0, max_tokens=new_tokens)
    one_token = SamplingParams(temperature=0, max_tokens=1)
    seconds = []
    for index, prompt in enumerate([prompts[0], *prompts[:ALONE]]):  # the first one warms up
        start = time.perf_counter()
        engine.generate([anew(prompt, f"alone-{index}")], one_token)
        seconds.append(time.perf_counter() - start)
    engine.watch()
    start = time.perf_counter()
    made = engine.generate(prompts, greedy)
    elapsed = time.perf_counter() - start
    answers = [Answer(len(one.prompt_token_ids), until_end(one.outputs[0].token_ids, checkpoint)) for one in made]
    return Side(answers, engine.kept(), len(prompts) / elapsed, median(seconds[1:]))


class Watch:
    """What vLLM's worker is taught, so that it tells what became of each picture's tokens (`worker_extension_cls`)."""

    def tokenzoo_watch(self) -> None:
        encoding = self._tokenzoo_encoding()
        if encoding is not None:
            encoding.log = []

    def tokenzoo_kept(self) -> list[tuple[str, list[int] | None]]:
        encoding = self._tokenzoo_encoding()
        return [] if encoding is None else encoding.log or []

    def _tokenzoo_encoding(self) -> Any:
        return getattr(self.get_model(), "encoding", None)  # type: ignore[attr-defined]


class Engine:
    """vLLM with a method; the one thing that holds it, so that it is gone once closed."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def generate(self, prompts: Sequence[Any], sampling: Any) -> list[Any]:
        """vLLM's outputs, in order."""
        return self._llm.generate(prompts, sampling, use_tqdm=False)

    def kept(self) -> Kept:
        """What became of the tokens of the pictures that were encoded since `watch`."""
        return {picture: assignment for picture, assignment in self._llm.collective_rpc("tokenzoo_kept")[0]}

    def watch(self) -> None:
        """Note from now on what becomes of tokens."""
        self._llm.collective_rpc("tokenzoo_watch")

    def close(self) -> None:
        """End it at once: a second one in this process would lose its own state as the first is collected."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()


@contextmanager
def engine(model: str, method: str, dtype: str, options: Mapping[str, Any]) -> Iterator[Engine]:
    """vLLM with a method, for as long as the block lasts. `options`: further arguments of `vllm.LLM`."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(f"vLLM is not here: {first_line(error)}. Run \"pip install 'tokenzoo[vllm]'\".") from None
    _check_loaded(os.environ.get("VLLM_PLUGINS"))
    # pixels are told apart as a processor makes them, not as vLLM would hand raw ones to the device
    given = {"enforce_eager": not torch.cuda.is_available(), "mm_device_do_normalize": False, **options}
    given["hf_overrides"] = {**given.get("hf_overrides", {}), KEY: method}
    try:
        made = Engine(LLM(locate(model), dtype=dtype, worker_extension_cls=f"{__name__}.{Watch.__name__}", **given))
    except (RuntimeError, ValueError, TypeError) as error:
        raise FailedError(f"vLLM does not start with '{method}': {first_line(error)}.") from error
    try:
        yield made
    finally:
        made.close()


def _check_loaded(chosen: str | None) -> None:
    """Raise UserError where vLLM would not load tokenzoo, and so serve a model without any method. `chosen`: VLLM_PLUGINS."""
    if not any(found.name == "tokenzoo" for found in entry_points(group="vllm.general_plugins")):
        raise UserError("vLLM does not find tokenzoo: its installation is older than its code. Run \"pip install '.[vllm]'\".")
    if chosen is not None and "tokenzoo" not in [name.strip() for name in chosen.split(",")]:
        raise UserError(f"VLLM_PLUGINS={chosen} keeps vLLM from loading tokenzoo. Add tokenzoo to it, or unset it.")


def prompt_of(checkpoint: Checkpoint, question: Question) -> dict[str, Any]:
    """A question as vLLM takes it: token ids with one placeholder for each picture, and the pictures."""
    checkpoint.check(question)
    templated, tokenizer = checkpoint.processor or checkpoint.tokenizer, checkpoint.tokenizer
    words = [
        tokenizer.convert_ids_to_tokens(token) if token is not None else "<none>"
        for token in (getattr(checkpoint.model.config, f"{kind}_token_id", None) for kind in ("image", "video"))
    ]
    shown: dict[str, Any] = {"image": list(question.images)} if question.images else {}
    if question.video:
        rate = getattr(getattr(templated, "video_processor", None), "fps", None) or FRAME_RATE
        when = {**metadata(question.video, rate), "do_sample_frames": False}  # the frames are chosen already
        shown["video"] = [(np.stack([np.asarray(frame) for frame in question.video]), when)]
    ids = tokenizer(prompt_text(question, templated, *words))["input_ids"]
    return {"prompt_token_ids": ids, "multi_modal_data": shown}


def anew(prompt: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same prompt with pictures that no cache of vLLM knows."""
    shown = prompt["multi_modal_data"]
    names = {kind: [f"{name}-{kind}-{index}" for index in range(len(items))] for kind, items in shown.items()}
    return {**prompt, "multi_modal_uuids": names}


def _shown(inputs: Mapping[str, Any], kind: str) -> bool:
    return inputs.get("pixel_values" if kind == "image" else "pixel_values_videos") is not None


def until_end(tokens: Sequence[int], checkpoint: Checkpoint) -> tuple[int, ...]:
    """An answer up to its end: `generate` writes the token that ends it, vLLM does too, some pad behind it."""
    end = checkpoint.model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])
