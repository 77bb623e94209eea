"""`none`: the model as it is, the row every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenzoo import TokenReducer, Workload


@dataclass
class Identity(TokenReducer):
    """Keep every visual token. No hook is registered, so the model is untouched."""

    name: ClassVar[str] = "none"

    def schedule(self, workload: Workload) -> list[int]:
        return [workload.visual_tokens] * workload.architecture.layers

    def at_retention(self, retention: float) -> Identity:
        if retention < 1:
            return super().at_retention(retention)  # type: ignore[return-value]
        return self
