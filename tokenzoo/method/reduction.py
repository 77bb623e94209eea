"""What a method returns, and how positions go on after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenzoo.errors import UserError

if TYPE_CHECKING:
    import torch

#: Position ids after a reduction. "keep": each token keeps the one it had. "renumber": 0..n-1.
PositionPolicy = Literal["keep", "renumber"]
#: What of a decoder layer has run when a method acts inside the LLM: its attention alone, or the whole layer, in this order.
ActsAfter = Literal["attention", "layer"]
HALVES: tuple[ActsAfter, ...] = ("attention", "layer")


class DataDependentError(Exception):
    """A count was asked for that depends on the picture; a recorded run tells it."""


class UnreachableError(UserError):
    """A budget was asked for that no setting of the method meets."""


@dataclass(frozen=True)
class Reduction:
    """What is left of a set of tokens, where tokens were merged (a plain selection is just an index tensor).

    `features` [kept, width]: the tokens that remain. Before the LLM they go on in this order.
    `anchors` [kept]: for each, the index of the input token it stands for. Where positions are kept it takes that
    token's position. Inside the LLM it also takes that token's place, so anchors must differ there.
    `assignment` [tokens]: for each input token, the output it went into, or -1 where it was dropped. Only pictures
    and reports read it.
    `appended`: inside the LLM, so many of the last outputs stand behind their image's or video's other tokens, in this
    order, instead of in their anchors' places.
    """

    features: torch.Tensor
    anchors: torch.Tensor
    assignment: torch.Tensor | None = None
    appended: int = 0
