"""Convention `llm-viewer`: the numbers of LLM-Viewer (arXiv 2402.16363), which AIM and PruMerge print.

Softmax counts 5 per score, a norm 7 per element, an add 1, the activation 2 (on the hidden, not the intermediate
width), the LM head one per weight and on one position. The vision tower, the projector and the method's own work are
not counted, nor is causality. With queries q, context s, hidden h, kv = h * kv_heads / heads, and w bytes per number.
"""

from __future__ import annotations

from tokenzoo.cost.operations import Operation, Step, flash_attention, linear
from tokenzoo.method.workload import Architecture


def decoder_layer(decoder: Architecture, step: Step, skip_mlp_add: bool = False) -> list[Operation]:
    """The operations of one decoder layer. `skip_mlp_add`: leave out the residual add after the MLP, as for Qwen2."""
    hidden, heads, inner = decoder.hidden, decoder.heads, decoder.intermediate
    kv = hidden * decoder.kv_heads // heads
    rows, left, width = step.batch * step.queries, step.mlp_rows, step.width

    def small(name: str, flops: int, numbers: int, rows: int = rows) -> Operation:
        return Operation(name, flops=flops * hidden * rows, bytes=width * numbers * hidden * rows)

    adds = [small("attention add", 1, 2)] + ([] if skip_mlp_add else [small("mlp add", 1, 2, left)])
    return [
        small("attention norm", 7, 2),
        linear("q", rows, hidden, hidden, width),
        linear("k", rows, hidden, kv, width),
        linear("v", rows, hidden, kv, width),
        *_attention(step, hidden, heads, kv),
        linear("out", rows, hidden, hidden, width),
        small("mlp norm", 7, 2, left),
        linear("gate", left, hidden, inner, width),
        linear("up", left, hidden, inner, width),
        small("activation", 2, 3, left),
        linear("down", left, inner, hidden, width),
        *adds,
    ]


def _attention(step: Step, hidden: int, heads: int, kv: int) -> list[Operation]:
    batch, queries, context, width = step.batch, step.queries, step.context, step.width
    product = 2 * batch * queries * context * hidden
    scores = batch * heads * queries * context
    if step.flash:
        return [flash_attention(step, hidden, kv, 2 * product + 5 * scores, 0)]
    return [
        Operation("qk", flops=product, bytes=width * (batch * (queries + context) * kv + scores)),
        Operation("softmax", flops=5 * scores, bytes=width * 2 * scores),
        Operation("sv", flops=product, bytes=width * (scores + batch * (queries * hidden + context * kv))),
    ]


def lm_head(decoder: Architecture, positions: int, width: int) -> list[Operation]:
    """The LM head: one operation per weight for each of `positions` positions."""
    flops = decoder.hidden * decoder.vocab * positions
    moved = decoder.hidden * decoder.vocab + (decoder.hidden + decoder.vocab) * positions
    return [Operation("lm head", flops=flops, bytes=width * moved)]
