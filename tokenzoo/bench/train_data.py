"""Training batches: scenes, what each patch shows, and many questions packed behind each picture.

A row is ``<s> user [visual tokens] newline`` followed by questions that see the picture and themselves, not each other (a
block-diagonal mask, positions restarting after the picture): one forward pass of the decoder answers a dozen questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tokenzoo.bench.vocabulary import BOS, PAD, word_ids

WORD_IDS = word_ids()
PREFIX = (BOS, "user")
AFTER_PICTURE = ("\n",)
SEGMENT = 7  #: the longest question in words, with the "assistant" that ends it


@dataclass(frozen=True)
class Packed:
    """The text side of a batch; T = prefix + visual tokens + newline + questions x SEGMENT.

    ``ids`` [batch, text] (everything but the visual tokens, prefix first), ``mask`` bool [batch, 1, T, T],
    ``positions`` [batch, T], ``answers`` [batch, questions], ``answer_index`` [batch, questions] into T, ``kinds`` [batch,
    questions] the index of the question's function.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    answer_index: torch.Tensor
    kinds: torch.Tensor


def ask(
    scenes: Sequence, functions: Sequence[Callable], weights: np.ndarray, count: int, rng: np.random.Generator
) -> list[list[tuple[int, str, str]]]:
    """``count`` questions about each scene, kinds drawn by weight: [(kind index, prompt, answer), ...] per scene."""
    shares = weights / weights.sum()
    asked = []
    for scene in scenes:
        rows: list[tuple[int, str, str]] = []
        while len(rows) < count:
            for kind in rng.choice(len(functions), count, p=shares):
                question = functions[kind](scene, rng)
                if question is not None and len(rows) < count:
                    rows.append((int(kind), question[0], question[2]))
        asked.append(rows)
    return asked


def pack(asked: list[list[tuple[int, str, str]]], visual_positions: np.ndarray, span: int) -> Packed:
    """Lay questions out behind visual tokens.

    :param visual_positions: [visual] where each token stands among the ``span`` tokens of the real model's picture
    """
    batch, count, visual = len(asked), len(asked[0]), len(visual_positions)
    shared = len(PREFIX) + visual + len(AFTER_PICTURE)
    head = [WORD_IDS[word] for word in PREFIX + AFTER_PICTURE]
    ids = np.full((batch, len(head) + count * SEGMENT), WORD_IDS[PAD], np.int64)
    ids[:, : len(head)] = head
    answers = np.zeros((batch, count), np.int64)
    answer_index = np.zeros((batch, count), np.int64)
    kinds = np.zeros((batch, count), np.int64)
    for row, questions in enumerate(asked):
        for column, (kind, prompt, answer) in enumerate(questions):
            words = [WORD_IDS[word] for word in prompt.rstrip("?").split()] + [WORD_IDS["assistant"]]
            start = len(head) + column * SEGMENT
            ids[row, start : start + len(words)] = words
            answers[row, column] = WORD_IDS[answer]
            answer_index[row, column] = shared + column * SEGMENT + len(words) - 1
            kinds[row, column] = kind
    segment = np.concatenate([np.zeros(shared, int), np.repeat(np.arange(1, count + 1), SEGMENT)])
    after = len(PREFIX) + span
    positions = np.concatenate(
        [np.arange(len(PREFIX)), len(PREFIX) + visual_positions, [after], np.tile(after + 1 + np.arange(SEGMENT), count)]
    )
    total = len(segment)
    mask = ((segment[:, None] == segment) | (segment == 0)) & np.tril(np.ones((total, total), bool))
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(mask)[None, None].expand(batch, 1, total, total),
        torch.from_numpy(positions)[None].expand(batch, total),
        torch.from_numpy(answers),
        torch.from_numpy(answer_index),
        torch.from_numpy(kinds),
    )


def answer_logits(model: nn.Module, visual: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Run a model's decoder on visual embeddings [batch, visual, hidden]: logits [batch, questions, vocabulary]."""
    decoder = model.model.language_model
    text = decoder.embed_tokens(packed.ids)
    embedded = torch.cat([text[:, : len(PREFIX)], visual, text[:, len(PREFIX) :]], 1)
    hidden = decoder(
        inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    index = packed.answer_index[..., None].expand(-1, -1, hidden.shape[-1])
    return model.lm_head(hidden.gather(1, index))
