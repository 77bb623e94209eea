"""DART: keep what differs most from a few pivot tokens (Wen et al., EMNLP 2025, arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tokenzoo import TokenReducer
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import DecoderLayer


@dataclass
class DART(TokenReducer):
    """Before layer K, keep the pivots and for each pivot the visual tokens least like it.

    Pivots: the `image_pivots` visual tokens and the `text_pivots` tokens of the text behind them whose keys of layer K - 1
    (after the rotary embedding, all heads) have the largest L1 norm. Each pivot in turn takes the k remaining visual
    tokens of lowest cosine similarity to it, by the LLM's final norm of the states that enter layer K, with k =
    floor(budget / pivots), or floor((1 - ratio) · V / pivots) of V visual tokens. So image_pivots + pivots · k are left,
    in order and with their positions. Layers before K see, and cache, everything.

    Tokens that are taken are gone for the next pivot, so the pivots' order matters: "official" is that of Python's set
    of their row numbers, as released; "ascending" that of the prompt. Ours on purpose: with less text than text pivots
    the others take more, fewer candidates than asked for are all kept, ratio=0 keeps everything; the released code
    fails at the first two and drops up to pivots - 1 - image_pivots tokens at the third. Norms of rotated keys depend on
    the positions themselves, so a left-padded batch needs position_ids, as `generate` makes them.
    """

    K: Annotated[int, Field(ge=1, description="Layers that see every token; the cut comes after layer K - 1.")] = 2
    ratio: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Share of visual tokens dropped.")] = 0.778
    budget: Annotated[int | None, Field(ge=0, description="Tokens that the pivots take, instead of ratio.")] = None
    image_pivots: Annotated[int, Field(ge=1, description="Pivots among the visual tokens.")] = 4
    text_pivots: Annotated[int, Field(ge=0, description="Pivots among the text behind them.")] = 4
    order: Annotated[Literal["official", "ascending"], Field(description="Which pivot takes first.")] = "official"

    name: ClassVar[str] = "dart"
    text_aware: ClassVar[bool] = True

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        if self.budget is None and self.ratio == 0:
            return {self.K - 1: entered}
        pivots = self.image_pivots + self.text_pivots
        taken = int(entered * (1 - self.ratio) / pivots) if self.budget is None else self.budget // pivots
        return {self.K - 1: min(entered, self.image_pivots + pivots * taken)}

    def pick(self, layer: DecoderLayer, count: int | None) -> Tensor:
        assert count is not None
        image, text = self.pivots(layer)
        rows = torch.cat([layer.visual[image], layer.text_after[text]])
        # the order of a set is known to Python alone, so an accelerator is waited for
        rows = torch.tensor(list(set(rows.tolist())), device=rows.device) if self.order == "official" else rows.sort().values
        unit = torch.nn.functional.normalize(layer.final_norm(layer.hidden_states).float(), dim=-1)
        likeness = unit[rows] @ unit[layer.visual].T
        return torch.cat([image, take_in_turn(likeness, image, count - len(image))]).sort().values

    def pivots(self, layer: DecoderLayer) -> tuple[Tensor, Tensor]:
        """The image pivots as indices into `layer.visual` and the text pivots into `layer.text_after`, by descending norm."""
        norm = layer.keys().float().abs().sum((0, 2))
        image = norm[layer.visual].argsort(descending=True, stable=True)[: self.image_pivots]
        return image, norm[layer.text_after].argsort(descending=True, stable=True)[: self.text_pivots]

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        return self.replace(ratio=1 - retention, budget=None)


def take_in_turn(likeness: Tensor, pivots: Tensor, count: int) -> Tensor:
    """`count` tokens in all, equally many for each row of likeness [rows, tokens]: those of its lowest that are still there.

    `pivots` are out from the start. The first rows take one more where the number is not even.
    """
    taken = [pivots]
    for number in range(len(likeness)):
        likeness = likeness.index_fill(1, taken[-1], torch.inf)
        share = count // len(likeness) + (number < count % len(likeness))
        taken.append(likeness[number].argsort(stable=True)[:share])
    return torch.cat(taken[1:])
