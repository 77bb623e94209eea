"""Run a model of any size without its weights: shapes are real, large tensors hold no memory.

The meta device alone cannot run a method: nothing on it can be compared, counted or listed, and a host that drops
tokens does all three. Here weights and activations are tensors of one stored zero expanded to their full shape;
results of operations on them are worked out by shape (on the meta device); what is small (scores of one row, kept
indices, positions, masks) is computed for real. So a 7B forward with the host and a method inside runs in seconds,
and counts what the real one counts, for every method whose counts do not depend on the picture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

#: Floating-point tensors of more elements than this are hollow.
LARGE = 1 << 16
#: Operators whose second result are indices that must differ from each other.
RANKING = ("aten::topk", "aten::sort", "aten::argsort")


def hollow(shape: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of this shape that stores one zero."""
    return torch.zeros((), dtype=dtype).expand(tuple(shape))


def stand_in(*shape: int) -> torch.Tensor:
    """Zeros of this shape that hold no memory where they are large."""
    size = math.prod(shape)
    return hollow(shape) if size > LARGE else torch.zeros(shape)


def is_hollow(value: Any) -> bool:
    """Whether `value` is a large tensor whose elements all lie on the same stored number."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.numel() > LARGE
        and all(stride == 0 or size == 1 for size, stride in zip(value.shape, value.stride(), strict=True))
    )


class Weightless(TorchDispatchMode):
    """Inside this mode whatever is computed from a hollow tensor is hollow again, or zero where it is small."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        if function.is_view or not any(map(is_hollow, leaves)):
            return function(*args, **kwargs)
        if function._schema.is_mutable:
            return args[0] if is_hollow(args[0]) else function(*args, **kwargs)
        try:
            shapes = function(*tree_map(_meta, args), **tree_map(_meta, kwargs))
        except NotImplementedError:  # the shape depends on the values: there are only zeros
            return function(*args, **kwargs)
        results = tree_flatten(shapes)[0]
        if any(isinstance(result, torch.Tensor) and result.dtype == torch.bool for result in results):
            return function(*args, **kwargs)
        if function._schema.name in RANKING:
            return tree_map(_ranked(_dimension(function, args, kwargs)), shapes)
        return tree_map(_filled, shapes)


def _meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _filled(value: Any) -> Any:
    """Hollow where it is large and floating point, else zeros."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point() and value.numel() > LARGE:
        return hollow(value.shape, value.dtype)
    return torch.zeros(value.shape, dtype=value.dtype)


def _dimension(function: Any, args: Any, kwargs: Any) -> int:
    """The `dim` of a call, wherever it stands; the last one where it is not given."""
    names = [argument.name for argument in function._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", -1)


def _ranked(dimension: int) -> Any:
    """As `_filled`, with 0, 1, 2, ... along the ranked dimension for indices."""

    def fill(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.is_floating_point() or not value.ndim:
            return _filled(value)
        order = torch.arange(value.shape[dimension])
        return order.view([-1 if d == dimension % value.ndim else 1 for d in range(value.ndim)]).expand(value.shape)

    return fill


def empty_out(model: nn.Module) -> nn.Module:
    """Give a model built on the meta device hollow weights and zero buffers; in evaluation mode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(hollow(parameter.shape), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return model.eval()
