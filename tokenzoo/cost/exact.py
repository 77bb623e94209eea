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
    """The operations of one decoder layer: attention or a recurrence, then a gated MLP or active experts."""
    hidden, inner, rows, width = decoder.hidden, decoder.intermediate, step.batch * step.queries, step.width
    mixer, left = linear_attention if decoder.linear else self_attention, step.mlp_rows
    mlp = [linear(name, left, hidden, inner, width) for name in ("gate", "up")]
    return [
        elementwise("attention norm", 4 * rows * hidden, 2 * rows * hidden, width, parallel=False),
        *mixer(decoder, step),
        elementwise("attention add", rows * hidden, 3 * rows * hidden, width, parallel=False),
        elementwise("mlp norm", 4 * left * hidden, 2 * left * hidden, width, parallel=False),
        *([linear("router", left, hidden, decoder.experts, width, parallel=False)] if decoder.experts else []),
        *([linear("shared gate", left, hidden, 1, width, parallel=False)] if decoder.beside_gated else []),
        *(_with_experts(operation, decoder, left, width) for operation in mlp),
        elementwise("activation", 5 * left * inner, 3 * left * inner, width),
        _with_experts(linear("down", left, inner, hidden, width), decoder, left, width),
        elementwise("mlp add", left * hidden, 3 * left * hidden, width, parallel=False),
        *(_layer_input(decoder, left, width) if decoder.per_layer_width else []),
    ]


def self_attention(decoder: Architecture, step: Step) -> list[Operation]:
    """Grouped-query attention with a rotary embedding; keys and values of another layer cost nothing again."""
    hidden, rows, width = decoder.hidden, step.batch * step.queries, step.width
    queries, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    own = [] if decoder.shared_kv_layers else ["k"] if decoder.key_is_value else ["k", "v"]
    rotated = rows * (queries + (kv if own else 0))
    gate = 5 * rows * queries if decoder.gated_attention else 0
    return [
        linear("q", rows, hidden, queries * (1 + decoder.gated_attention), width),
        *(linear(name, rows, hidden, kv, width) for name in own),
        elementwise("rotary", 3 * rotated, 2 * rotated, width),
        *attention(step, decoder.heads, decoder.head_dim, kv),
        *([elementwise("output gate", gate, 3 * rows * queries, width)] if gate else []),
        linear("out", rows, queries, hidden, width),
    ]


#: Rows that transformers' gated delta rule takes at once in a prefill.
CHUNK = 64


def linear_attention(decoder: Architecture, step: Step) -> list[Operation]:
    """A gated delta rule: projections, a convolution over a few rows, the recurrence in chunks (one row: element by element).

    A triangular system of n rows with m right-hand sides counts n² m.
    """
    sizes = decoder.linear
    assert sizes is not None
    hidden, batch, rows, width = decoder.hidden, step.batch, step.batch * step.queries, step.width
    keys, values, heads = sizes.key_dim, sizes.value_dim, batch * sizes.value_heads
    inner, state = sizes.value_heads * values, heads * keys * values
    decoding = step.queries == 1 and step.context > 1
    mixed = batch * (2 if decoding else step.queries + sizes.kernel - 1)
    operations = [
        linear("qkv", rows, hidden, sizes.channels, width),
        linear("output gate", rows, hidden, inner, width),
        *(linear(name, rows, hidden, sizes.value_heads, width) for name in ("rate", "decay")),
        Operation("convolution", flops=2 * mixed * sizes.channels * sizes.kernel, bytes=width * 2 * rows * sizes.channels),
        elementwise("activation of q, k, v", 4 * rows * sizes.channels, 2 * rows * sizes.channels, width),
    ]
    if decoding:
        operations.append(elementwise("delta rule", 7 * state, 2 * state, 4))
    else:
        chunks = -(-step.queries // CHUNK)
        within = 4 * CHUNK**2 * keys + CHUNK**2 * (keys + values) + 2 * CHUNK**2 * values
        across = 6 * CHUNK * keys * values
        moved = rows * (sizes.channels + inner) + chunks * 2 * state
        operations.append(Operation("delta rule", flops=heads * chunks * (within + across), bytes=4 * moved))
    return [
        *operations,
        elementwise("output norm", 9 * rows * inner, 3 * rows * inner, width),
        linear("out", rows, inner, hidden, width),
    ]


def _layer_input(decoder: Architecture, rows: int, width: int) -> list[Operation]:
    """What a layer makes of its own input (Gemma 4): a gate, the product, a projection, a norm, a residual add."""
    hidden, inner = decoder.hidden, decoder.per_layer_width
    return [
        linear("layer input gate", rows, hidden, inner, width),
        elementwise("layer input", 6 * rows * inner, 3 * rows * inner, width),
        linear("layer input projection", rows, inner, hidden, width),
        elementwise("layer input add", 5 * rows * hidden, 4 * rows * hidden, width, parallel=False),
    ]


def layer_inputs(decoder: Architecture, rows: int, width: int) -> list[Operation]:
    """What each layer is given of the rows that enter the decoder (Gemma 4); [] where layers get no input of their own."""
    inner = decoder.layers * decoder.per_layer_width
    if not inner:
        return []
    return [
        linear("layer inputs", rows, decoder.hidden, inner, width),
        elementwise("layer inputs norm", 6 * rows * inner, 3 * rows * inner, width, parallel=False),
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
