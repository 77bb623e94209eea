"""`count`: what a real forward costs, counted twice (fvcore and torch's FlopCounterMode), the method's work apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from tokenzoo.counting.counter import METHOD, PRODUCTS, FlopCounter, UncountedOperationError, method_scope
from tokenzoo.errors import FailedError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import decisions
from tokenzoo.method.trace import Trace


@dataclass(frozen=True)
class Counted:
    """FLOPs of matrix products and convolutions on one real forward: 2 per multiply-add, integers.

    `flops` is everything; `method` the part that ran inside the method's own hooks; `by_module` the rest, by module
    name ("" is all of it). `elementwise` is fvcore's element-wise column. `torch_flops` and `torch_method` are torch's
    FlopCounterMode on the same forward. `trace` is what the run recorded.
    """

    flops: int
    method: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    elementwise: int
    torch_flops: int
    torch_method: int
    trace: Trace | None = field(default=None, repr=False)

    def module(self, name: str) -> int:
        """FLOPs of the model's own work below a module (`model.vision_tower`); 0 where it did not run."""
        return self.by_module.get(name, 0)


def count(
    model: nn.Module,
    inputs: Mapping[str, Any],
    reducer: TokenReducer | Any = None,
    visual: Any = None,
) -> Counted:
    """Count one forward `model(**inputs)`, with `reducer` (a spec, a TokenReducer, a Pipeline or None) at work in it.

    The forward runs twice, without a KV cache where no method chooses what stays in it. Raises FailedError where the two
    counters disagree and UncountedOperationError where an operator that may cost has no handler.
    """
    reducers = _reducers(reducer)
    inputs = {"use_cache": any(method.caches for method in reducers), **inputs}
    meter = _MethodMeter()
    with torch.no_grad(), _applied(model, reducers, meter, visual) as run:
        with FlopCounterMode(display=False, custom_mapping=CUSTOM) as mode:
            meter.mode = mode
            model(**inputs)
            meter.mode = None
        torch_flops = mode.get_total_flops()
        trace = run.trace if run is not None else None  # now: while fvcore traces, sizes are tensors
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in inputs.items() if name not in tensors}
        whole = _Call(model, list(tensors), rest)
        counts = FlopCounter(whole, tuple(tensors.values())).counts()
    operators = counts[""]
    products = {name: value for name, value in operators.items() if not name.startswith("elementwise")}
    counted = Counted(
        flops=sum(products.values()),
        method=_total(operators, METHOD),
        by_module={_inner(name): _total(values, "model") for name, values in counts.items()},
        by_operator=dict(products),
        elementwise=_total(operators, "elementwise"),
        torch_flops=torch_flops,
        torch_method=meter.flops,
        trace=trace,
    )
    if (counted.flops, counted.method) != (counted.torch_flops, counted.torch_method):
        raise FailedError(
            f"The counters disagree: fvcore {counted.flops} (method {counted.method}), FlopCounterMode "
            f"{counted.torch_flops} (method {counted.torch_method}). Please report this as a bug."
        )
    return counted


class _Call(nn.Module):
    """A model's call with keyword arguments as a module that fvcore can trace: tensors in, tensors out.

    A trace keeps only what its outputs depend on, but the model executes more (CLIP's last layer, where the layer
    before it is the feature layer), so every product leaves an empty tensor that depends on it among the outputs.
    """

    def __init__(self, model: nn.Module, names: list[str], rest: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.rest = model, names, rest
        self.add_module(METHOD, nn.Identity())  # the scope of the method's own work must be a module's

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # some models make no cache of their own while they are traced
        cache = {"past_key_values": DynamicCache()} if self.rest["use_cache"] else {}
        with _Sink() as sink, _traceable_round():
            self.model(**dict(zip(self.names, tensors, strict=True)), **self.rest, **cache)
        return tuple(sink.outputs)


@contextmanager
def _traceable_round() -> Iterator[None]:
    """While tracing, sizes are tensors, which Python's `round` (in LLaVA-NeXT's unpadding) refuses."""
    torch.Tensor.__round__ = lambda size, digits=None: round(size.item(), digits)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del torch.Tensor.__round__  # type: ignore[attr-defined]


class _Sink(TorchFunctionMode):
    """Collects an empty tensor that depends on the result of every function that may hold a product."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        if name in ("conv2d", "conv3d") and len(args) > 4 and not any(args[4]):
            # the tracer loses a convolution with numeric padding whose result is made by a dispatch mode (Weightless)
            args = (*args[:4], "valid", *args[5:])
        if name == "conv1d" and kwargs and kwargs.get("padding"):  # the same, with zeros to add: Qwen3.5's
            args = (nn.functional.pad(args[0], (kwargs["padding"],) * 2), *args[1:])
            kwargs = {**kwargs, "padding": "valid"}
        result = function(*args, **(kwargs or {}))
        if name in SUNK and isinstance(result, torch.Tensor):
            self.outputs.append(result.new_empty(0))
        return result


class _MethodMeter:
    """Measures what runs inside a method's hooks: by difference in FlopCounterMode, by scope in fvcore's trace."""

    def __init__(self) -> None:
        self.mode: FlopCounterMode | None = None
        self.flops = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = self.mode.get_total_flops() if self.mode else 0
        with method_scope():
            yield
        if self.mode:
            self.flops += self.mode.get_total_flops() - before

    def watch(self, reducer: TokenReducer) -> TokenReducer:
        """Return a copy of `reducer` whose hooks are measured."""
        watched = reducer.replace()
        for hook in decisions(reducer):
            object.__setattr__(watched, hook, self._measured(getattr(watched, hook)))
        return watched

    def _measured(self, hook: Any) -> Any:
        def measured(*given: Any) -> Any:
            with self():
                return hook(*given)

        return measured


def _reducers(reducer: Any) -> list[TokenReducer]:
    if reducer is None:
        return []
    if isinstance(reducer, str):
        from tokenzoo.zoo.plugins import load_zoo

        reducer = load_zoo().build(reducer)
    if isinstance(reducer, TokenReducer):
        return [reducer]
    return list(getattr(reducer, "reducers", reducer))


def _applied(model: nn.Module, reducers: Sequence[TokenReducer], meter: _MethodMeter, visual: Any) -> Any:
    if not reducers:
        return nullcontext()
    from tokenzoo import apply

    return apply(model, [meter.watch(reducer) for reducer in reducers], visual=visual, scaled=True)


def _total(counts: Mapping[str, Any], kind: str) -> int:
    return sum(int(value) for name, value in counts.items() if name.startswith(kind))


def _inner(name: str) -> str:
    return name.removeprefix("model").removeprefix(".")


def _attention_flops(query: Any, key: Any, value: Any, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """Both products over the full square for q [..., m, d], k [..., n, d], v [..., n, e] (shapes)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped_flops(rows: Any, weights: Any, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """The rows [rows, inputs] of each expert times that expert's weights [experts, inputs, outputs] (shapes)."""
    return 2 * math.prod(rows) * weights[-1]


def _triangular_flops(triangle: Any, sides: Any, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """n² m for a triangle [..., n, n] and m right-hand sides (shapes)."""
    return math.prod(sides) * triangle[-1]


#: The Python names of the functions in `counter.PRODUCTS`; `@` is `matmul`, `rmatmul` or `imatmul`.
SUNK = {*(name.strip("_") for name in PRODUCTS), "rmatmul", "imatmul"}

_FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
#: torch's registry lacks the CPU's attention kernel, and its own formula refuses grouped heads.
CUSTOM: dict[Any, Any] = {getattr(torch.ops.aten, name): _attention_flops for name in _FUSED if hasattr(torch.ops.aten, name)}
CUSTOM[torch.ops.aten.linalg_solve_triangular] = _triangular_flops
if hasattr(torch.ops.aten, "_grouped_mm"):
    CUSTOM[torch.ops.aten._grouped_mm] = _grouped_flops

__all__ = ["Counted", "UncountedOperationError", "count"]
