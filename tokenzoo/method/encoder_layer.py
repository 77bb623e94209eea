"""What a method sees inside the vision encoder: the views of one image or video in one encoder layer.

What costs something is a method and is computed when asked for, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenzoo.lazy import torch
from tokenzoo.method.reduction import ActsAfter, Reduction
from tokenzoo.method.validation import Checks, InvalidReductionError, check_count, check_reduction
from tokenzoo.method.workload import Architecture

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EncoderLayer:
    """The views of one image or video in encoder layer `index` of `num_layers`.

    `after`: what of the layer has run, its "attention" alone or the whole "layer". A view is a frame, an
    image, or one of an anyres image's base and tiles; all of them lose equally many tokens.

    `hidden_states` [views, tokens, width]: the patches that are there, residual stream included. The CLS token is not among
    them: the host keeps it, first in the sequence, and `has_cls` tells of it. `sizes` [views, tokens], float32: how many
    patches each token stands for. `patches`: how many a view had when it entered. `memory` is that of `VisualTokens`.
    """

    index: int
    num_layers: int
    after: ActsAfter
    hidden_states: Tensor
    sizes: Tensor
    patches: int
    has_cls: bool
    projected_keys: Callable[[], Tensor]
    memory: dict[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None
    kind: str = "image"
    checks: Checks = field(default_factory=Checks)
    #: Which of the tokens that came are left, and into which of these each one went (-1: dropped); None: nothing happened.
    anchors: Tensor | None = None
    assignment: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens each view has now."""
        return self.hidden_states.shape[1]

    def keys(self) -> Tensor:
        """This layer's keys, mean over heads: [views, tokens, head width]; neither scaled nor normalised, without CLS."""
        keys = self.projected_keys()
        return keys if self.anchors is None else take(keys, self.anchors)

    def apply(self, result: Tensor | Reduction, method: str, count: int | None) -> None:
        """Apply what a method returned: kept indices [views, kept] in their new order, or a Reduction whose tensors have a
        leading dimension for the views."""
        where = f"encoder layer {self.index}"
        anchors = check_reduction(result, self.hidden_states, method, where, unique_anchors=False, checks=self.checks)
        check_count(anchors.shape[1], count, method, where)
        merged = isinstance(result, Reduction)
        assignment = result.assignment if isinstance(result, Reduction) else None
        if assignment is None:
            numbers = torch.arange(anchors.shape[1], device=anchors.device).expand_as(anchors)
            assignment = anchors.new_full(self.sizes.shape, -1).scatter(1, anchors, numbers)
        else:
            assignment = self._checked(assignment, anchors.shape[1], f"Method '{method}' ({where})")
        if merged:
            stay = assignment >= 0
            sizes = self.sizes.new_zeros(anchors.shape)
            self.sizes = sizes.scatter_add(1, assignment.clamp(min=0), torch.where(stay, self.sizes, 0.0))
        else:
            self.sizes = self.sizes.gather(1, anchors)
        self.hidden_states = result.features if isinstance(result, Reduction) else take(self.hidden_states, anchors)
        self.anchors, self.assignment = follow(self.anchors, self.assignment, anchors, assignment)

    def _checked(self, assignment: Tensor, left: int, who: str) -> Tensor:
        """An assignment of each token to one of `left` outputs, or to -1; sizes are summed along it."""
        if assignment.shape != self.sizes.shape or assignment.dtype != torch.long:
            wanted = f"a long tensor {list(self.sizes.shape)}"
            raise InvalidReductionError(f"{who}: assignment must be {wanted}, not {assignment.dtype} {list(assignment.shape)}.")

        def explain() -> None:
            raise InvalidReductionError(f"{who}: assignment must name one of the {left} outputs, or -1 where a token is dropped.")

        self.checks.expect_not(((assignment < -1) | (assignment >= left)).any(), explain)
        return assignment.clamp(-1, left - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Of values [views, tokens, ...] those at index [views, kept]."""
    view = torch.arange(len(index), device=index.device)[:, None]
    return values[view, index]


def follow(anchors: Tensor | None, assignment: Tensor | None, then: Tensor, goes: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors and assignment of one reduction (None: none yet) and of the next one together, each [views, ...]."""
    if anchors is None or assignment is None:
        return then, goes
    return anchors.gather(1, then), torch.where(assignment >= 0, goes.gather(1, assignment.clamp(min=0)), -1)
