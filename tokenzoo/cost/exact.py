"""Convention `exact`: what the model executes, equal to the digit to what a counter sees on a real forward.

`flops` are 2 per multiply-add of every matrix product and convolution: linears, both attention products over the
full square, the LM head on the positions it is applied to, vision tower, projector, the method's own products.
Element-wise work is a column of its own: 4 per element of an RMS norm (7 of a layer norm), 3 per rotated element,
5 per score for the softmax, 5 per activation with its gate, 1 per residual add.
"""

from __future__ import annotations

from dataclasses import replace

from tokenzoo.cost.operations import Operation, Step, flash_attention, linear
from tokenzoo.method.workload import Architecture


def elementwise(name: str, flops: int, numbers: int, width: int, parallel: bool = True) -> Operation:
    """Element-wise work: `flops` operations that read and write `numbers` numbers."""
    return Operation(name, elementwise=flops, bytes=width * numbers, parallel=parallel)


def decoder_layer(decoder: Architecture, step: Step, skip_mlp_add: bool = False) -> list[Operation]:
    """The operations of one decoder layer (gated MLP or active experts, grouped-query attention, rotary embedding)."""
    hidden, inner, rows, width = decoder.hidden, decoder.intermediate, step.batch * step.queries, step.width
    queries, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    rotated, left = rows * (queries + kv), step.mlp_rows
    mlp = [linear(name, left, hidden, inner, width) for name in ("gate", "up")]
    return [
        elementwise("attention norm", 4 * rows * hidden, 2 * rows * hidden, width, parallel=False),
        linear("q", rows, hidden, queries, width),
        linear("k", rows, hidden, kv, width),
        linear("v", rows, hidden, kv, width),
        elementwise("rotary", 3 * rotated, 2 * rotated, width),
        *attention(step, decoder.heads, decoder.head_dim, kv),
        linear("out", rows, queries, hidden, width),
        elementwise("attention add", rows * hidden, 3 * rows * hidden, width, parallel=False),
        elementwise("mlp norm", 4 * left * hidden, 2 * left * hidden, width, parallel=False),
        *([linear("router", left, hidden, decoder.experts, width, parallel=False)] if decoder.experts else []),
        *(_with_experts(operation, decoder, left, width) for operation in mlp),
        elementwise("activation", 5 * left * inner, 3 * left * inner, width),
        _with_experts(linear("down", left, inner, hidden, width), decoder, left, width),
        elementwise("mlp add", left * hidden, 3 * left * hidden, width, parallel=False),
    ]


def _with_experts(operation: Operation, decoder: Architecture, rows: int, width: int) -> Operation:
    """A linear layer of the MLP where each row has experts of its own: all that some row has are read."""
    if not decoder.experts:
        return operation
    more = min(decoder.experts, rows * decoder.active_experts) - decoder.active_experts
    return replace(operation, bytes=operation.bytes + width * more * decoder.expert_intermediate * decoder.hidden)


def attention(step: Step, heads: int, head_dim: int, kv: int, parallel: bool = True) -> list[Operation]:
    """Both attention products over the full square and the softmax between them."""
    batch, queries, context, width = step.batch, step.queries, step.context, step.width
    product = 2 * batch * queries * context * heads * head_dim
    scores = batch * heads * queries * context
    if step.flash:
        return [flash_attention(step, heads * head_dim, kv, 2 * product, 5 * scores)]
    rows = batch * queries * heads * head_dim
    return [
        Operation("qk", flops=product, bytes=width * (rows + batch * context * kv + scores), parallel=parallel),
        elementwise("softmax", 5 * scores, 2 * scores, width, parallel),
        Operation("sv", flops=product, bytes=width * (scores + batch * context * kv + rows), parallel=parallel),
    ]


def lm_head(decoder: Architecture, positions: int, width: int) -> list[Operation]:
    """The LM head on `positions` positions (`generate`: the last one of each sequence)."""
    return [linear("lm head", positions, decoder.hidden, decoder.vocab, width)]
