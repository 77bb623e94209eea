"""Asking a model questions: one batched prefill where an answer is chosen, greedy decoding where it is free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from tokenzoo.bench.task import Prediction, Question
from tokenzoo.models import Checkpoint

MAX_NEW_TOKENS = 16


@torch.inference_mode()
def predict(checkpoint: Checkpoint, questions: Sequence[Question], batch_size: int = 16) -> list[Prediction]:
    """Answer every question, in order; works inside `tokenzoo.apply` as it calls the model in the stock way.

    A choice is scored by the logit of its first token after the prompt. Choices whose first tokens coincide are answered in
    free form, as questions without choices are.
    """
    predictions = []
    for batch in _batches(questions, batch_size):
        answers = _choose(checkpoint, batch) if _choice_tokens(checkpoint, batch[0]) else _generate(checkpoint, batch)
        for question, answer in zip(batch, answers, strict=True):
            correct = normalise(answer) == normalise(question.answer)
            predictions.append(Prediction(question.id, answer, correct, question.answer))
    return predictions


def blank(question: Question) -> Question:
    """The same question about grey pictures: what can be answered from the text alone."""
    from dataclasses import replace

    from PIL import Image

    grey = [tuple(Image.new("RGB", one.size, (128, 128, 128)) for one in media) for media in (question.images, question.video)]
    return replace(question, images=grey[0], video=grey[1])


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, as in the VQA evaluation (Antol et al. 2015)."""
    words = re.sub(r"[^\w\s-]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Runs of at most ``size`` questions of one sort: chosen or free, picture or video of the same length."""
    batch: list[Question] = []
    for question in questions:
        if batch and (len(batch) == size or _sort(question) != _sort(batch[0])):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _sort(question: Question) -> tuple:
    return question.choices == (), len(question.images), len(question.video)


def _choice_tokens(checkpoint: Checkpoint, question: Question) -> list[list[int]]:
    """First tokens of each choice, written with and without a leading blank; empty if they do not tell choices apart."""
    tokens = []
    for choice in question.choices:
        spellings = (checkpoint.tokenizer.encode(text, add_special_tokens=False) for text in (choice, f" {choice}"))
        tokens.append(sorted({ids[0] for ids in spellings if ids}))
    every = [token for choice in tokens for token in choice]
    return tokens if len(every) == len(set(every)) and all(tokens) else []


def _choose(checkpoint: Checkpoint, batch: Sequence[Question]) -> list[str]:
    logits = checkpoint.model(**checkpoint.inputs(batch), logits_to_keep=1).logits[:, -1].float()
    answers = []
    for question, row in zip(batch, logits, strict=True):
        values = [row[tokens].max().item() for tokens in _choice_tokens(checkpoint, question)]
        answers.append(question.choices[values.index(max(values))])
    return answers


def _generate(checkpoint: Checkpoint, batch: Sequence[Question]) -> list[str]:
    inputs = checkpoint.inputs(batch)
    made = checkpoint.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return checkpoint.decode(made[:, inputs["input_ids"].shape[1] :])
