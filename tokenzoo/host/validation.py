"""What a method may return, checked before the host acts on it, so that a faulty method fails in its own name."""

from __future__ import annotations

import torch

from tokenzoo.errors import FailedError
from tokenzoo.reducer import Reduction


class InvalidReductionError(FailedError):
    """A method returned something that is no reduction of the tokens it was given."""


def check_reduction(
    result: torch.Tensor | Reduction, tokens: torch.Tensor, method: str, where: str, unique_anchors: bool
) -> None:
    """Raise InvalidReductionError unless `result` is a valid reduction of `tokens` [count, width]."""

    def fail(problem: str) -> None:
        raise InvalidReductionError(f"Method '{method}' ({where}): {problem}")

    count, width = tokens.shape
    merged = isinstance(result, Reduction)
    index = result.anchors if isinstance(result, Reduction) else result
    if not isinstance(index, torch.Tensor):
        fail(f"must return an index tensor, a Reduction or None, not {type(index).__name__}.")
    if index.dtype != torch.long or index.ndim != 1:
        fail(f"kept indices must be a long tensor [kept], not {index.dtype} {list(index.shape)}.")
    if index.device != tokens.device:
        fail(f"kept indices lie on {index.device}, the tokens on {tokens.device}.")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        fail(f"kept index {int(index.max())} is out of range: {count} visual tokens were given.")
    if (unique_anchors or not merged) and len(index.unique()) != len(index):
        fail("the same token is kept twice.")
    if isinstance(result, Reduction):
        if tuple(result.features.shape) != (len(index), width):
            fail(f"features have shape {list(result.features.shape)}, expected [{len(index)}, {width}].")
        if result.features.dtype != tokens.dtype:
            fail(f"features are {result.features.dtype}, the tokens {tokens.dtype}.")
        if not bool(torch.isfinite(result.features).all()):
            fail("features hold NaN or infinity.")
        if len(index) > count:
            fail(f"{len(index)} tokens were made of {count}: a reduction cannot grow.")
