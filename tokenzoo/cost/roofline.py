"""Time by the roofline: each operation takes as long as the slowest of computing, moving memory and sending."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.cost.hardware import Hardware
from tokenzoo.cost.operations import Operation
from tokenzoo.errors import UserError


@dataclass(frozen=True)
class OperationTime:
    """Seconds of one operation on one GPU of the group, and the bound that holds: compute, memory or link."""

    seconds: float
    bound: str
    compute_seconds: float
    memory_seconds: float


def time_operation(operation: Operation, hardware: Hardware, dtype: str, tensor_parallel: int = 1) -> OperationTime:
    """The roofline time of `operation`: work that is split over the group counts a share for each GPU."""
    share = tensor_parallel if operation.parallel else 1
    compute = operation.flops / hardware.peak(dtype) / share
    if operation.elementwise:
        compute += operation.elementwise / hardware.vector_peak / share
    memory = operation.bytes / hardware.bandwidth / share
    link = 0.0
    if operation.link_bytes:
        if not hardware.link_bandwidth:
            raise UserError(f"'{hardware.name}' names no link_bandwidth, which tensor parallel needs.")
        link = operation.link_bytes / hardware.link_bandwidth
    seconds, bound = max((compute, "compute"), (memory, "memory"), (link, "link"), key=lambda pair: pair[0])
    return OperationTime(seconds, bound, compute, memory)


def all_reduce(name: str, numbers: int, width: int, tensor_parallel: int) -> Operation:
    """Sum `numbers` numbers over a group in a ring: each GPU sends 2 (n - 1) / n of them."""
    return Operation(name, link_bytes=2 * (tensor_parallel - 1) * numbers * width // tensor_parallel, parallel=False)
