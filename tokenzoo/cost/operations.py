"""What is priced: one operation, and the step of a decoder layer that operations are made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass.

    `flops` is what the convention counts; `elementwise` what it keeps in a column of its own; `bytes` moved between
    memory and chip; `link_bytes` sent to other GPUs. `parallel` operations are split over a tensor-parallel group.
    """

    name: str
    flops: int = 0
    elementwise: int = 0
    bytes: int = 0
    link_bytes: int = 0
    parallel: bool = True


@dataclass(frozen=True)
class Step:
    """One pass through a layer: `queries` rows enter it, each attends to `context` rows (prefill: both the same;
    decoding: one query, everything cached as context). `width` is the bytes of a number, `flash` whether attention
    runs as one kernel that never writes the score matrix. `mlp`: the rows that its MLP works on, where fewer."""

    queries: int
    context: int
    batch: int = 1
    width: int = 2
    flash: bool = False
    mlp: int | None = None

    @property
    def mlp_rows(self) -> int:
        """The rows of the whole batch that the layer's MLP works on."""
        return self.batch * (self.queries if self.mlp is None else self.mlp)


#: Query rows that a FlashAttention-2 kernel keeps on the chip; K and V are read once for each such block.
FLASH_ROWS = 128


def linear(name: str, rows: int, inputs: int, outputs: int, width: int, parallel: bool = True) -> Operation:
    """A linear layer on `rows` rows: weights are read once, rows read and written."""
    return Operation(
        name,
        flops=2 * rows * inputs * outputs,
        bytes=width * (inputs * outputs + rows * inputs + rows * outputs),
        parallel=parallel,
    )


def flash_attention(step: Step, query_width: int, kv_width: int, flops: int, elementwise: int) -> Operation:
    """Attention in one kernel: Q and the output once, K and V once per block of query rows, no score matrix."""
    blocks = -(-step.queries // FLASH_ROWS)
    moved = 2 * step.queries * query_width + blocks * 2 * step.context * kv_width
    return Operation("attention", flops=flops, elementwise=elementwise, bytes=step.width * step.batch * moved)
