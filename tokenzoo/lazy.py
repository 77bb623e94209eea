"""Torch, imported at its first use.

`tokenzoo --help`, `list`, `cost` and `reproduce` read the methods' parameters and schedules but never touch a
tensor, and importing torch takes seconds. Modules on that path write `from tokenzoo.lazy import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _LazyModule:
    """Stands for a module and imports it when an attribute is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch
else:
    torch = _LazyModule("torch")
