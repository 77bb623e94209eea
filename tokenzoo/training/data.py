"""Training batches: many questions packed behind each picture.

A row is ``<s> user [visual tokens] newline`` followed by questions that see the picture and themselves, not each other (a
block-diagonal mask, positions restarting after the picture): one forward pass of the decoder answers a dozen questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tokenzoo.bench.image_questions import Asked
from tokenzoo.bench.scenes import KINDS
from tokenzoo.bench.vocabulary import BOS, EOS, PAD, word_ids

WORD_IDS = word_ids()
LOWEST = -1e9  #: added to what attention must not see
PREFIX = (BOS, "user")
AFTER_PICTURE = ("\n",)
IGNORED = -100  #: cross entropy's mark for "no target"
#: So many first layers of the decoder survey the picture; later ones read what a question asks for.
SURVEYING = 2
#: The layers in which a question's last words are taught to look at the object it names, and at the one that answers it.
GROUNDED = ((3, 4), (6, 7))
SEGMENT = 8  #: the longest question in words, with the "assistant" that ends it and the answer


@dataclass(frozen=True)
class Packed:
    """The text side of a batch; T = prefix + visual tokens + newline + questions x SEGMENT.

    ``ids`` [batch, text] (everything but the visual tokens, prefix first), ``mask`` bool [1, 1, T, T],
    ``positions`` [batch, T], ``answers`` [batch, questions], ``answer_index`` [batch, questions] into T, ``kinds`` [batch,
    questions] the index of the question's function, ``hints`` [batch, questions] what is to be found half-way, or IGNORED.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    answer_index: torch.Tensor
    kinds: torch.Tensor
    hints: torch.Tensor


def ask(
    scenes: Sequence, functions: Sequence[Callable], weights: np.ndarray, count: int, rng: np.random.Generator
) -> list[list[tuple[int, Asked]]]:
    """``count`` questions about each scene, kinds drawn by weight: [(kind index, question), ...] per scene."""
    shares = weights / weights.sum()
    asked = []
    for scene in scenes:
        rows: list[tuple[int, Asked]] = []
        while len(rows) < count:
            for kind in rng.choice(len(functions), count, p=shares):
                question = functions[kind](scene, rng)
                if question is not None and len(rows) < count:
                    rows.append((int(kind), question))
        asked.append(rows)
    return asked


def pack(asked: list[list[tuple[int, Asked]]], visual_positions: torch.Tensor) -> Packed:
    """Lay questions out behind visual tokens.

    :param visual_positions: [batch, visual], growing; the text goes on after the last
    """
    batch, count, visual = len(asked), len(asked[0]), visual_positions.shape[1]
    shared = len(PREFIX) + visual + len(AFTER_PICTURE)
    head = [WORD_IDS[word] for word in PREFIX + AFTER_PICTURE]
    ids = np.full((batch, len(head) + count * SEGMENT), WORD_IDS[PAD], np.int64)
    ids[:, : len(head)] = head
    answers = np.zeros((batch, count), np.int64)
    answer_index = np.zeros((batch, count), np.int64)
    kinds = np.zeros((batch, count), np.int64)
    hints = np.zeros((batch, count), np.int64)
    for row, questions in enumerate(asked):
        for column, (kind, question) in enumerate(questions):
            words = [WORD_IDS[word] for word in (*question.prompt.rstrip("?").split(), "assistant", question.answer)]
            start = len(head) + column * SEGMENT
            ids[row, start : start + len(words)] = words
            answers[row, column] = words[-1]
            answer_index[row, column] = shared + column * SEGMENT + len(words) - 2
            kinds[row, column] = kind
            hints[row, column] = WORD_IDS.get(question.hint, IGNORED)
    segment = np.concatenate([np.zeros(shared, int), np.repeat(np.arange(1, count + 1), SEGMENT)])
    before = torch.arange(len(PREFIX)).expand(batch, -1)
    after = len(PREFIX) + visual_positions[:, -1:] + 1
    text = after + torch.cat([torch.zeros(1, dtype=torch.long), (1 + torch.arange(SEGMENT)).repeat(count)])
    total = len(segment)
    mask = ((segment[:, None] == segment) | (segment == 0)) & np.tril(np.ones((total, total), bool))
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(mask)[None, None],
        torch.cat([before, len(PREFIX) + visual_positions, text], 1),
        torch.from_numpy(answers),
        torch.from_numpy(answer_index),
        torch.from_numpy(kinds),
        torch.from_numpy(hints),
    )


def read(
    model: Any, visual: torch.Tensor, packed: Packed, blind: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """Run a model's decoder on visual embeddings [batch, visual, hidden].

    :param blind: the text does not see the picture in the layers that survey it (SURVEYING)
    :return: logits of the answers [batch, questions, vocabulary], the hidden states entering each layer [batch, T, hidden], and
        the attention [batch, heads, text, visual] that the text behind the picture pays it in each layer (eager attention alone
        tells)
    """
    decoder = model.model.language_model
    text = decoder.embed_tokens(packed.ids)
    embedded = torch.cat([text[:, : len(PREFIX)], visual, text[:, len(PREFIX) :]], 1)
    picture = slice(len(PREFIX), len(PREFIX) + visual.shape[1])
    mask = torch.zeros(packed.mask.shape).masked_fill(~packed.mask, LOWEST)
    unseen = mask.clone()
    unseen[..., picture.stop :, picture] = LOWEST
    attentions: list[torch.Tensor] = []

    def look(attention: Any, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        return inputs, named | dict(attention_mask=unseen) if blind else named

    def keep(attention: Any, inputs: tuple, outputs: tuple) -> None:
        if outputs[1] is not None:
            attentions.append(outputs[1][:, :, picture.stop :, picture])

    hooks = [layer.self_attn.register_forward_pre_hook(look, with_kwargs=True) for layer in decoder.layers[:SURVEYING]]
    hooks += [layer.self_attn.register_forward_hook(keep) for layer in decoder.layers]
    try:
        outputs = decoder(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=packed.positions,
            use_cache=False,
            output_hidden_states=True,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return model.lm_head(_at(packed.answer_index, outputs.last_hidden_state)).float(), outputs.hidden_states, attentions


def survey_loss(attentions: list[torch.Tensor], wanted: torch.Tensor, packed: Packed) -> torch.Tensor:
    """How far each head's attention, in the layers that survey the picture, is from the shares wanted [batch, visual].

    The same for every word of every question: what is asked about is read later.
    """
    words = (packed.ids[:, len(PREFIX) :] != WORD_IDS[PAD]).float()[:, None]
    losses = []
    for attention in attentions[:SURVEYING]:
        share = attention.float() / (attention.float().sum(-1, keepdim=True) + 1e-8)
        distance = -(wanted[:, None, None] * (share + 1e-8).log()).sum(-1)
        losses.append((distance * words).sum() / (words.sum() * distance.shape[1]))
    return torch.stack(losses).mean()


def grounding_loss(attentions: list[torch.Tensor], kinds: torch.Tensor, asked: list, packed: Packed) -> torch.Tensor:
    """How far the attention of each question's last two words is from the object that it names and, later, from its answer's.

    Two, because the last ("assistant") is the same in all questions and knows what is asked for only from the one before.

    :param kinds: [batch, visual], what each token shows, counted from 1
    """
    last = packed.answer_index - (len(PREFIX) + kinds.shape[1])
    rows = torch.stack([last, last - 1], -1)
    found = torch.tensor([[_objects(question) for _, question in questions] for questions in asked])
    losses = []
    for step, layers in enumerate(GROUNDED):
        wanted = (found[..., step, None] == kinds[:, None]) & (kinds[:, None] > 0)
        there = wanted.any(-1)
        for layer in layers:
            attention = attentions[layer].float().mean(1)
            attention = attention.gather(1, rows.flatten(1)[..., None].expand(-1, -1, kinds.shape[1])).unflatten(
                1, rows.shape[1:]
            )
            share = (attention * wanted[:, :, None]).sum(-1) / (attention.sum(-1) + 1e-8)
            losses.append(-(share + 1e-3).log().mean(-1)[there].sum() / there.sum().clamp(min=1))
    return torch.stack(losses).mean()


def _objects(question: Asked) -> tuple[int, int]:
    """The kinds of the object that a question names and of the one that answers it, each counted from 1, or 0."""
    named = [word for word in question.prompt.rstrip("?").split() if word in KINDS]
    answers = [question.answer] if question.answer in KINDS and not question.prompt.startswith("how") else []
    first, last = (named or answers)[:1], (answers or named)[:1]
    return _number(first), _number(last)


def _number(kinds: list[str]) -> int:
    return KINDS.index(kinds[0]) + 1 if kinds else 0


def stop_loss(model: Any, states: tuple[torch.Tensor, ...], packed: Packed) -> torch.Tensor:
    """Cross entropy of the end of the sequence, which follows every answer."""
    logits = model.lm_head(_at(packed.answer_index + 1, states[-1])).float().flatten(0, 1)
    return F.cross_entropy(logits, torch.full((len(logits),), WORD_IDS[EOS]))


def hint_loss(model: Any, states: tuple[torch.Tensor, ...], packed: Packed) -> torch.Tensor:
    """Cross entropy of the hints, read off the middle layer as if it were the last; 0 where there are none."""
    decoder = model.model.language_model
    if not (packed.hints != IGNORED).any():
        return torch.zeros(())
    middle = _at(packed.answer_index, states[len(decoder.layers) // 2])
    return F.cross_entropy(model.lm_head(decoder.norm(middle)).float().flatten(0, 1), packed.hints.flatten())


def _at(index: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
