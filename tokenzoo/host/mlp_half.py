"""Tokens that leave inside a layer of the decoder or the encoder: its MLP half runs on fewer rows than its attention.

The layer's own code stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokenzoo.host.family import Module


class MlpHalf:
    """The hooks on one layer.

    The layer adds what its MLP returns to a residual stream with all rows, which only its own code holds. So the MLP is given
    the rows that are left and its output is kept back; the layer adds zero instead, and the sum of what is left replaces what
    it returns.
    """

    def __init__(
        self, layer: Module, branch: tuple[Module, Module], reduce: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        self.layer, self.branch, self.reduce = layer, branch, reduce
        self.left: torch.Tensor | None = None
        self.output: torch.Tensor | None = None

    def attach(self) -> list[Any]:
        """Register the hooks; return their handles."""
        first, last = self.branch
        return [
            first.register_forward_pre_hook(self._begin),
            last.register_forward_hook(self._end),
            # ahead of every other hook, which are to see what is left: transformers collects hidden states by hooks of its own
            self.layer.register_forward_hook(self._add, prepend=True),
        ]

    def _begin(self, module: Module, args: tuple) -> tuple | None:
        self.left = self.reduce(args[0])
        return None if self.left is None else (self.left, *args[1:])

    def _end(self, module: Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self.left is None:
            return None
        self.output = output
        return output.new_zeros(())

    def _add(self, module: Module, args: tuple, output: Any) -> Any:
        left, made = self.left, self.output
        self.left = self.output = None
        if left is None or made is None:
            return None
        return (left + made, *output[1:]) if isinstance(output, tuple) else left + made
