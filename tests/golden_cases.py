"""Golden cases: what published code returned, one .npz each in a folder beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch


class GoldenCases:
    """The cases of one folder; `tested` are those that a test module asked for, so that it can prove it left none out."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(__file__).parent / folder
        self.tested: set[str] = set()

    def named(self, *patterns: str) -> set[str]:
        """The names of the cases that fit one of the patterns."""
        return {path.stem for pattern in patterns for path in self.folder.glob(f"{pattern}.npz")}

    def cases(self, *patterns: str, but: tuple[str, ...] = ()) -> list[str]:
        """The same in order, without some, as parameters of a test."""
        names = sorted(self.named(*patterns) - set(but))
        self.tested.update(names)
        return names

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of a case as tensors; texts stay as numpy has them."""
        return _load(self.folder / f"{name}.npz")

    def values(self, name: str) -> dict[str, Any]:
        """The arrays of a case; those of no dimension as Python numbers."""
        return {key: value if value.ndim else value.item() for key, value in self.arrays(name).items()}


@cache
def _load(path: Path) -> dict[str, Any]:
    with np.load(path) as stored:
        return {key: stored[key] if stored[key].dtype.kind == "U" else torch.tensor(stored[key]) for key in stored.files}
