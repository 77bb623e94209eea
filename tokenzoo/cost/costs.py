"""The result of pricing: a cost made of parts, each made of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenzoo.cost.operations import Operation


@dataclass(frozen=True)
class PricedOperation:
    """An operation with its roofline time; `seconds` is None and `bound` empty where no time is defined."""

    operation: Operation
    seconds: float | None = None
    bound: str = ""


@dataclass(frozen=True)
class Part:
    """A row of the cost: "vision", "projector", "layer 0" ..., "lm head", "method"."""

    name: str
    operations: tuple[PricedOperation, ...]

    @property
    def flops(self) -> int:
        return sum(priced.operation.flops for priced in self.operations)

    @property
    def elementwise(self) -> int:
        return sum(priced.operation.elementwise for priced in self.operations)

    @property
    def bytes(self) -> int:
        return sum(priced.operation.bytes for priced in self.operations)

    @property
    def seconds(self) -> float | None:
        return _sum(priced.seconds for priced in self.operations)

    @property
    def bound(self) -> str:
        """The bound that holds for most of the part's time."""
        times: dict[str, float] = {}
        for priced in self.operations:
            if priced.bound:
                times[priced.bound] = times.get(priced.bound, 0.0) + (priced.seconds or 0.0)
        return max(times, key=lambda name: times[name]) if times else ""


@dataclass(frozen=True)
class DecodeCost:
    """Decoding steps after the prefill: one new row each, which attends to what is cached before it (or to the part that a
    method lets it read) and to itself."""

    steps: int
    flops: int
    elementwise: int
    bytes: int
    seconds: float | None
    first_step_flops: int
    first_step_seconds: float | None
    kv_bytes: int


@dataclass(frozen=True)
class Cost:
    """What one prefill costs under one convention.

    `tokens[l]` and `visual_tokens[l]` enter decoder layer l, per sample; `mlp_tokens[l]` of the tokens reach its MLP.
    `kv_bytes_per_layer` is the cache after prefill of the whole batch. `flops`, `elementwise` (a column of its own, 0 where
    the convention mixes it into `flops`) and `bytes` are of the whole batch; `seconds` is the roofline time, None without
    hardware or where the convention defines no bytes.
    """

    architecture: str
    method: str
    convention: str
    dtype: str
    hardware: str
    batch: int
    tensor_parallel: int
    tokens: tuple[int, ...]
    visual_tokens: tuple[int, ...]
    mlp_tokens: tuple[int, ...]
    projector_tokens: int
    parts: tuple[Part, ...]
    kv_bytes_per_layer: tuple[int, ...]
    has_bytes: bool = True
    decode: DecodeCost | None = None

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def elementwise(self) -> int:
        return sum(part.elementwise for part in self.parts)

    @property
    def bytes(self) -> int | None:
        return sum(part.bytes for part in self.parts) if self.has_bytes else None

    @property
    def seconds(self) -> float | None:
        return _sum(part.seconds for part in self.parts)

    @property
    def kv_bytes(self) -> int:
        return sum(self.kv_bytes_per_layer)

    @property
    def mean_visual_tokens(self) -> float:
        """Visual tokens, mean over the decoder layers: what makes two methods comparable."""
        return sum(self.visual_tokens) / len(self.visual_tokens)

    @property
    def layers(self) -> tuple[Part, ...]:
        """The parts that are decoder layers, in order."""
        return tuple(part for part in self.parts if part.name.startswith("layer "))

    def part(self, name: str) -> Part:
        """The part of that name; an empty one where this cost has none ("vision" of a plain decoder)."""
        return next((part for part in self.parts if part.name == name), Part(name, ()))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        decode = None if self.decode is None else dict(vars(self.decode))
        return {
            "architecture": self.architecture,
            "method": self.method,
            "convention": self.convention,
            "dtype": self.dtype,
            "hardware": self.hardware,
            "batch": self.batch,
            "tensor_parallel": self.tensor_parallel,
            "flops": self.flops,
            "elementwise": self.elementwise,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "kv_bytes": self.kv_bytes,
            "mean_visual_tokens": self.mean_visual_tokens,
            "projector_tokens": self.projector_tokens,
            "tokens": list(self.tokens),
            "visual_tokens": list(self.visual_tokens),
            "mlp_tokens": list(self.mlp_tokens),
            "kv_bytes_per_layer": list(self.kv_bytes_per_layer),
            "parts": [
                {
                    "name": part.name,
                    "flops": part.flops,
                    "elementwise": part.elementwise,
                    "bytes": part.bytes if self.has_bytes else None,
                    "seconds": part.seconds,
                    "bound": part.bound,
                }
                for part in self.parts
            ],
            "decode": decode,
        }


def _sum(values: Any) -> float | None:
    numbers = list(values)
    if any(number is None for number in numbers):
        return None
    return float(sum(numbers)) if numbers else 0.0
