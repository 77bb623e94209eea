"""MMTok: keep the tokens that best cover the question and the picture (arXiv 2508.18264, ICLR 2026)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, TokenReducer, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Asked where a prompt has no question.
NO_QUESTION = "What do you see in this image?"
#: Instructions that are no part of a question.
FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
#: Words that say nothing about a picture.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been being have has had do does did it they he she we you i what where when why how who "
        "which and or but so if then question answer to for with by from at into onto upon",
    )
)


@dataclass
class MMTok(TokenReducer):
    """Before the LLM, keep of each view the round(retention · n) tokens that cover the most, chosen greedily.

    With the view's embeddings x, its features c before the projector and the embeddings z of the question's m words, a
    token j covers the text by P_ij = softmax_j(cos(z_i, x_j) / `text_temperature`) / m and the picture by Q_ij =
    softmax_j(cos(c_i, c_j) / `vision_temperature`) / n. A set S covers Σ_i max_{j in S} M_ij of M = [P; `alpha` · Q].
    Kept tokens stay in raster order.

    The question: without the usual answer formats and stop words, if `tokenzoo.apply` was given `questions` and a
    `tokenizer`; else all the prompt's text behind the picture. Ours on purpose: no token is picked twice, and no padding
    of LLaVA-1.5's squared pictures is left out, as Hugging Face's processor crops to a square and pads nothing.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.1111
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Weight of covering the picture.")] = 0.5
    text_temperature: Annotated[Temperature, Field(description="Softmax temperature of words and tokens.")] = 0.02
    vision_temperature: Annotated[Temperature, Field(description="Softmax temperature among tokens.")] = 0.2
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "mmtok"
    text_aware: ClassVar[bool] = True

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.feature_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.left is not None and tokens.architecture is not None
        seen = tokens.encoder_features(tokens.architecture.feature_layer)
        if tokens.question is None:
            asked = tokens.text_after()
        else:
            asked = tokens.embed_words(keywords(tokens.question) or keywords(NO_QUESTION))

        def cover(index: Tensor, count: int) -> Tensor:
            return ops.max_coverage(self.values(tokens.features[index], seen[index], asked), count).sort().values

        return ops.pick_views(tokens.views(), tokens.left, cover)

    def values(self, x: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """M [views, m + n, n] of the tokens x [views, n, d] and c [views, n, w] and the text z [m, d]."""
        x, c, z = (torch.nn.functional.normalize(states.float(), dim=-1, eps=1e-8) for states in (x, c, z))
        text = (z @ x.transpose(1, 2) / self.text_temperature).softmax(-1) / max(len(z), 1)
        picture = (c @ c.transpose(1, 2) / self.vision_temperature).softmax(-1) / max(c.shape[1], 1)
        return torch.cat([text, self.alpha * picture], dim=1)


def keywords(question: str) -> list[str]:
    """The words of a question that say something; where there are none, all of them."""
    text = question.removeprefix("<image>\n")
    for instruction in FORMATS:
        text = text.replace(instruction, "")
    words = [word for word in re.findall(r"\b\w+\b", text) if word.lower() not in STOP_WORDS]
    return words or text.split()
