"""A model of lmms-eval that runs any supported checkpoint with a method at work.

    lmms-eval --model tokenzoo --model_args "pretrained=llava-hf/llava-1.5-7b-hf,method=fastv:K=3;R=0.75" --tasks pope

lmms-eval splits `--model_args` at commas, so a method's parameters are separated by semicolons there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

import tokenzoo
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.trace import Trace
from tokenzoo.models.checkpoint import Checkpoint, load
from tokenzoo.models.media import Frames
from tokenzoo.models.question import Question
from tokenzoo.zoo.plugins import load_zoo

#: Tokens of an answer where a benchmark names no length.
MAX_NEW_TOKENS = 16

Asked = tuple[Question, Mapping[str, Any]]


class Tokenzoo(lmms):
    """`--model_args` of lmms-eval, and two for Python: a `checkpoint` that is loaded already, and `watch`.

    :param pretrained: a directory, a Hub id, or an embedded model
    :param method: a method's specification, with semicolons for commas; `none` is the model as it is
    :param frames: frames taken of each video
    :param watch: called with each batch's trace and how many samples it had
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "embedded:llava",
        method: str | Pipeline = "none",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        attention: str | None = None,
        frames: int = 8,
        max_batch_size: Any = None,
        checkpoint: Checkpoint | None = None,
        watch: Callable[[Trace, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or not int(batch_size):
            raise UserError(f"--batch_size '{batch_size}': the model 'tokenzoo' takes a number from 1.")
        self.batch_size, self.frames, self.watch = int(batch_size), int(frames), watch
        self.method = method if isinstance(method, Pipeline) else load_zoo().build(str(method).replace(";", ","))
        loaded = checkpoint or load(str(pretrained), dtype, attention, device or _own_device())
        self.checkpoint = loaded.scaled(self.method.picture_scale)

    @property
    def device(self) -> torch.device:
        return self.checkpoint.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Each request's answer, in order; options of sampling are the benchmark's, a stop string ends an answer."""
        asked = (
            (self._question(f"{task}/{document}", context, visuals(self._document(task, split, document))), options)
            for context, options, visuals, document, task, split in (request.args for request in requests)
        )
        return [answer for batch in batches(asked, self.batch_size) for answer in self._answers(batch)]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Each request's answers, a round after the other: the benchmark says what the next round shows and asks."""
        return [self._rounds(*request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The mean loss over each continuation's tokens (as lmms-eval's own models return), and whether it is the greedy one.

        The continuation is decoded token by token after a prefill of the prompt alone, so that what a method keeps does
        not depend on the answer that is scored.
        """
        asked = []
        for request in requests:
            context, continuation, visuals, identifier, task, split = request.args
            document = self._document(task, split, identifier)
            text = continuation if isinstance(continuation, str) else continuation(document)
            asked.append((self._question(f"{task}/{identifier}", context, visuals(document)), {"continuation": text}))
        return [scored for batch in batches(asked, self.batch_size, alike=False) for scored in self._losses(batch)]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _document(self, task: str, split: str, identifier: int) -> Any:
        return self.task_dict[task][split][identifier]

    def _question(self, name: str, context: str, visuals: Sequence[Any] | None) -> Question:
        return question_of(name, context, visuals or (), self.frames)

    def _rounds(self, context: str, options: Mapping[str, Any], visuals: Any, ask: Any, identifier: int, task: str, split: str
                ) -> list[str]:  # fmt: skip
        document = self._document(task, split, identifier)
        answers: list[str] = []
        shown, told = visuals(document), None
        while True:
            question = self._question(f"{task}/{identifier}/{len(answers)}", context, shown)
            answers += self._answers([(_held(question), options)])
            shown, context, ended, answers, told = ask(
                document, previous_output=answers, round_idx=len(answers), previous_round_info=told
            )
            answers = list(answers)
            if ended:
                return answers

    @torch.inference_mode()
    def _answers(self, batch: Sequence[Asked]) -> list[str]:
        questions, options = [question for question, _ in batch], batch[0][1]
        made = self._generate(questions, max_new_tokens=int(options.get("max_new_tokens", MAX_NEW_TOKENS)), **_sampling(options))
        stops = options.get("until") or ()
        return [_cut(text, [stops] if isinstance(stops, str) else stops) for text in self.checkpoint.decode(made)]

    @torch.inference_mode()
    def _losses(self, batch: Sequence[Asked]) -> list[tuple[float, bool]]:
        tokenizer = self.checkpoint.tokenizer
        forced = [tokenizer.encode(options["continuation"], add_special_tokens=False) for _, options in batch]
        if not all(forced):
            raise UserError("A continuation without a token has no likelihood. Look at the benchmark's choices.")
        force = Force(forced)
        longest = max(map(len, forced))
        options = {"max_new_tokens": longest, "logits_processor": LogitsProcessorList([force])}
        self._generate([question for question, _ in batch], do_sample=False, **options)
        return [(sum(losses) / len(losses), greedy) for losses, greedy in zip(force.losses, force.greedy, strict=True)]

    def _generate(self, questions: Sequence[Question], **options: Any) -> torch.Tensor:
        """New tokens [batch, tokens] with the method at work."""
        inputs = self.checkpoint.inputs(questions)
        with tokenzoo.apply(self.checkpoint.model, self.method, **self.checkpoint.words(questions)) as run:
            made = self.checkpoint.model.generate(**inputs, **options)
        if self.watch is not None:
            self.watch(run.trace, len(questions))
        return made[:, inputs["input_ids"].shape[1] :]


class Force(LogitsProcessor):
    """Makes `generate` write given tokens, and notes the loss of each and whether greedy decoding had chosen it."""

    def __init__(self, forced: Sequence[Sequence[int]]) -> None:
        self.forced, self.step = forced, 0
        self.losses: list[list[float]] = [[] for _ in forced]
        self.greedy = [True] * len(forced)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chances = torch.log_softmax(scores.float(), dim=-1)
        out = torch.full_like(scores, float("-inf"))
        for sample, tokens in enumerate(self.forced):
            token = tokens[min(self.step, len(tokens) - 1)]  # a shorter one is repeated while the others end
            if self.step < len(tokens):
                self.losses[sample].append(-chances[sample, token].item())
                self.greedy[sample] &= int(chances[sample].argmax()) == token
            out[sample, token] = 0
        self.step += 1
        return out


def question_of(name: str, prompt: str, visuals: Sequence[Any], frames: int) -> Question:
    """A benchmark's prompt and what it shows as a question: pictures, or one video's file. Raises UserError for anything else."""
    if visuals and all(isinstance(one, Image.Image) for one in visuals):
        return Question(name, prompt, images=tuple(one.convert("RGB") for one in visuals))
    if len(visuals) == 1 and isinstance(visuals[0], (str, Path)):
        return Question(name, prompt, video=Frames(Path(visuals[0]), frames, f"Benchmark question '{name}'"))
    if visuals:
        raise UserError(
            f"Benchmark question '{name}' shows {', '.join(type(one).__name__ for one in visuals)}: only pictures, or one video."
        )
    return Question(name, prompt)


def batches(asked: Iterable[Asked], size: int, alike: bool = True) -> Iterator[list[Asked]]:
    """Runs of at most `size` requests with as many pictures, frames and (`alike`) the same options; a video is read once."""
    batch: list[Asked] = []
    sort: tuple = ()
    for question, options in asked:
        held = _held(question)
        own = (len(held.images), len(held.video), sorted(map(repr, options.items())) if alike else None)
        if batch and (len(batch) == size or own != sort):
            yield batch
            batch = []
        batch, sort = [*batch, (held, options)], own
    if batch:
        yield batch


def _held(question: Question) -> Question:
    """The question with its video's frames in memory."""
    return replace(question, video=tuple(question.video)) if question.video else question


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("do_sample") and options.get("temperature", 1):
        return {"do_sample": True, **{name: options[name] for name in ("temperature", "top_p") if options.get(name)}}
    return {"do_sample": False, "num_beams": int(options.get("num_beams") or 1)}


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min([text.find(stop) for stop in stops if stop and stop in text], default=len(text))]


def _own_device() -> str | None:
    """This process's GPU where lmms-eval was started on several."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and torch.cuda.is_available() else None
