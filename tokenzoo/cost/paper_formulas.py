"""Conventions `fastv` and `pdrop`: the formulas as those papers write them. They name no bytes, so no time follows.

Per layer with n tokens, d hidden, m intermediate: FastV 4nd^2 + 2n^2d + 2ndm (arXiv 2403.06764, section 4.2; a
two-matrix MLP), PyramidDrop the same with 3ndm (LLaMA's three matrices). One multiply-add counts as one, grouped
key-value heads as full ones; nothing outside the layers is counted. In decoding, the products with cached rows are
2nd for the one new row.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenzoo.cost.operations import Operation, Step
from tokenzoo.method.workload import Architecture


def formula(mlp_matrices: int) -> Callable[[Architecture, Step, bool], list[Operation]]:
    """Return the formula with 2 (FastV) or 3 (PyramidDrop) matrices in the MLP."""

    def decoder_layer(decoder: Architecture, step: Step, skip_mlp_add: bool = False) -> list[Operation]:
        rows, hidden = step.batch * step.queries, decoder.hidden
        return [
            Operation("projections", flops=4 * rows * hidden**2),
            Operation("attention", flops=2 * rows * step.context * hidden),
            Operation("mlp", flops=mlp_matrices * step.mlp_rows * hidden * decoder.intermediate),
        ]

    return decoder_layer


def lm_head(decoder: Architecture, positions: int, width: int) -> list[Operation]:
    """Nothing: both papers leave the LM head out."""
    return []
