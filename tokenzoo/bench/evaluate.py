"""Asking a model questions: one batched prefill where an answer is chosen, greedy decoding where it is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from tokenzoo.bench.task import Prediction, normalise
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.question import Question

MAX_NEW_TOKENS = 16


@torch.inference_mode()
def predict(
    checkpoint: Checkpoint, questions: Sequence[Question], batch_size: int = 16, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Prediction]:
    """Answer every question, in order; works inside `tokenzoo.apply` as it calls the model in the stock way.

    A choice is scored by the logit of its first token after the prompt. Choices whose first tokens coincide are answered in
    free form, as questions without choices are.
    """
    predictions = []
    for batch in batches(checkpoint, questions, batch_size):
        chosen = bool(_choice_tokens(checkpoint, batch[0]))
        answers = _choose(checkpoint, batch) if chosen else _generate(checkpoint, batch, max_new_tokens)
        for question, answer in zip(batch, answers, strict=True):
            correct = normalise(answer) == normalise(question.answer)
            predictions.append(Prediction(question.id, answer, correct, question.answer, chosen))
    return predictions


def batches(checkpoint: Checkpoint, questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Runs of at most ``size`` questions of one sort: all chosen or all free, as many pictures, videos of the same length."""
    batch: list[Question] = []
    sort: tuple = ()
    for question in questions:
        own = (bool(_choice_tokens(checkpoint, question)), len(question.images), len(question.video))
        if batch and (len(batch) == size or own != sort):
            yield batch
            batch = []
        batch, sort = [*batch, question], own
    if batch:
        yield batch


def blank(question: Question) -> Question:
    """The same question about grey pictures: what can be answered from the text alone."""
    from dataclasses import replace

    from PIL import Image

    grey = [tuple(Image.new("RGB", one.size, (128, 128, 128)) for one in media) for media in (question.images, question.video)]
    return replace(question, images=grey[0], video=grey[1])


def _choice_tokens(checkpoint: Checkpoint, question: Question) -> Sequence[Sequence[int]]:
    return _first_tokens(checkpoint.tokenizer, question.choices)


@lru_cache(maxsize=1024)
def _first_tokens(tokenizer: Any, choices: tuple[str, ...]) -> Sequence[Sequence[int]]:
    """First tokens of each choice, written with and without a leading blank; empty if they do not tell choices apart."""
    tokens = []
    for choice in choices:
        spellings = (_first_token(tokenizer, text) for text in (choice, f" {choice}"))
        tokens.append(sorted({token for token in spellings if token is not None}))
    every = [token for choice in tokens for token in choice]
    return tokens if len(every) == len(set(every)) and all(tokens) else []


def _first_token(tokenizer: Any, text: str) -> int | None:
    """The first token that is more than a blank: some tokenizers (Llama's) make one of the blank alone."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return next((token for token in ids if tokenizer.decode([token]).strip()), None)


def _choose(checkpoint: Checkpoint, batch: Sequence[Question]) -> list[str]:
    logits = checkpoint.model(**checkpoint.inputs(batch), logits_to_keep=1).logits[:, -1]
    answers = []
    for question, row in zip(batch, logits.float().cpu(), strict=True):  # a GPU is waited for once
        values = [row[tokens].max().item() for tokens in _choice_tokens(checkpoint, question)]
        answers.append(question.choices[values.index(max(values))])
    return answers


def _generate(checkpoint: Checkpoint, batch: Sequence[Question], max_new_tokens: int) -> list[str]:
    inputs = checkpoint.inputs(batch)
    made = checkpoint.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return checkpoint.decode(made[:, inputs["input_ids"].shape[1] :])
