"""GPUs in numbers: peak rates, bandwidths, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tokenzoo.errors import UserError, unknown
from tokenzoo.zoo.plugins import load_zoo

#: Bytes per number.
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}

SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp8": "float8"}


@dataclass(frozen=True)
class Hardware:
    """One GPU. Rates per second: `flops` of dense matrix products by number format, `vector_flops` of float32 outside
    the matrix units, `bandwidth` of its memory and `link_bandwidth` to a neighbour in bytes; `memory` in bytes."""

    name: str
    flops: dict[str, float]
    bandwidth: float
    vector_flops: float = 0.0
    link_bandwidth: float = 0.0
    memory: float = 0.0
    source: str = ""

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in `dtype`; raises UserError where this GPU has no such units."""
        if dtype not in self.flops:
            raise UserError(f"'{self.name}' has no matrix units for {dtype}. Choose from: {', '.join(sorted(self.flops))}.")
        return self.flops[dtype]

    @property
    def vector_peak(self) -> float:
        """Peak FLOP/s of element-wise work."""
        return self.vector_flops or max(self.flops.values())


def dtype_named(name: str) -> str:
    """The number format of that name or short name (`bf16`); raises UserError for an unknown one."""
    full = SHORT.get(name, name)
    if full not in WIDTHS:
        raise unknown("dtype", name, [*WIDTHS, *SHORT], "tokenzoo cost --help")
    return full


def width_of(dtype: str) -> int:
    """Bytes of one number; raises UserError for an unknown format."""
    return WIDTHS[dtype_named(dtype)]


def load_hardware(name: str) -> Hardware:
    """Return the GPU of that name or alias in the registries; raises UserError with a suggestion where there is none."""
    entries = load_zoo().registry.hardware
    names = {alias: key for key, entry in entries.items() for alias in [key, *(entry.get("aliases") or [])]}
    if name not in names:
        raise unknown("hardware", name, names, "tokenzoo cost --list-hardware")
    return from_entry(names[name], entries[names[name]])


def from_entry(name: str, entry: dict[str, Any]) -> Hardware:
    """Build a GPU from a registry entry; raises UserError for a missing, unknown or impossible value."""
    known = {"flops", "bandwidth", "vector_flops", "link_bandwidth", "memory", "source", "aliases"}
    for key in entry:
        if key not in known:
            raise unknown(f"key of hardware '{name}'", key, known, "tokenzoo cost --list-hardware")
    if not isinstance(entry.get("flops"), dict) or not entry["flops"] or "bandwidth" not in entry:
        raise UserError(f"hardware '{name}' needs 'flops' (by number format) and 'bandwidth'.")
    for dtype in entry["flops"]:
        width_of(dtype)
    optional = {
        key: _rate(entry[key], f"hardware '{name}': {key}")
        for key in ("vector_flops", "link_bandwidth", "memory")
        if key in entry
    }
    return Hardware(
        name=name,
        flops={dtype: _rate(value, f"hardware '{name}': flops.{dtype}") for dtype, value in entry["flops"].items()},
        bandwidth=_rate(entry["bandwidth"], f"hardware '{name}': bandwidth"),
        source=str(entry.get("source", "")),
        **optional,
    )


def _rate(value: Any, what: str) -> float:
    try:
        number = float(value)  # YAML reads 312e12 as text
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise UserError(f"{what} must be a positive number, not {value!r}.")
    return number
