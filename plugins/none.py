"""`none`: the model as it is, the row every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenzoo import TokenReducer


@dataclass
class Identity(TokenReducer):
    """Keep every visual token. No hook is registered, so the model is untouched."""

    name: ClassVar[str] = "none"

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        return self if retention >= 1 else super().at_retention(retention, layers)
