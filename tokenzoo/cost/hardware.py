"""GPUs in numbers: peak rates, bandwidths, memory."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tokenzoo.cost.records import Rate, Record, read_record
from tokenzoo.errors import UserError, unknown
from tokenzoo.zoo.plugins import load_zoo

LISTING = "tokenzoo cost --list-hardware"
#: Bytes per number.
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}

SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp8": "float8"}


def dtype_named(name: str) -> str:
    """The number format of that name or short name (`bf16`); raises UserError for an unknown one."""
    full = SHORT.get(name, name)
    if full not in WIDTHS:
        raise unknown("dtype", name, [*WIDTHS, *SHORT], "tokenzoo cost --help")
    return full


def width_of(dtype: str) -> int:
    """Bytes of one number; raises UserError for an unknown format."""
    return WIDTHS[dtype_named(dtype)]


def _full_names(flops: dict[str, float]) -> dict[str, float]:
    return {dtype_named(dtype): rate for dtype, rate in flops.items()}


class Hardware(Record):
    """One GPU. Rates per second: `flops` of dense matrix products by number format, `vector_flops` of float32 outside
    the matrix units, `bandwidth` of its memory and `link_bandwidth` to a neighbour in bytes; `memory` in bytes. 0: unknown.
    """

    name: str
    flops: Annotated[dict[str, Rate], Field(min_length=1), AfterValidator(_full_names)]
    bandwidth: Rate
    vector_flops: Rate = 0.0
    link_bandwidth: Rate = 0.0
    memory: Rate = 0.0
    source: str = ""
    aliases: tuple[str, ...] = ()

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in `dtype`; raises UserError where this GPU has no such units."""
        if dtype not in self.flops:
            raise UserError(f"'{self.name}' has no matrix units for {dtype}. Choose from: {', '.join(sorted(self.flops))}.")
        return self.flops[dtype]

    @property
    def vector_peak(self) -> float:
        """Peak FLOP/s of element-wise work."""
        return self.vector_flops or max(self.flops.values())


def load_hardware(name: str) -> Hardware:
    """Return the GPU of that name or alias in the registries; raises UserError with a suggestion where there is none."""
    entries = load_zoo().registry.hardware
    if name in entries:
        return from_entry(name, entries[name])
    known = [from_entry(key, entry) for key, entry in entries.items()]
    found = next((gpu for gpu in known if name in gpu.aliases), None)
    if found is None:
        raise unknown("hardware", name, [name for gpu in known for name in (gpu.name, *gpu.aliases)], LISTING)
    return found


def from_entry(name: str, entry: dict[str, Any]) -> Hardware:
    """Build a GPU from a registry entry; raises UserError for a missing, unknown or impossible value."""
    return read_record(Hardware, {"name": name, **entry}, f"hardware '{name}'", LISTING)
