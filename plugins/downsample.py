"""`downsample`: show the model a smaller picture, the baseline that every reduction of tokens has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokenzoo import TokenReducer


@dataclass
class Downsample(TokenReducer):
    """Before the encoder, make each side of every picture and frame `scale` times as long.

    The encoder sees fewer patches, so unlike every other method this one saves the encoder's work too. It needs a model
    that takes pictures of several sizes.
    """

    scale: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="What each side is multiplied by.")] = 0.5

    name: ClassVar[str] = "downsample"

    @property
    def picture_scale(self) -> float:
        return self.scale

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """A picture of `retention` times the area."""
        return self.replace(scale=round(retention**0.5, 6))
