"""The mask oracle: what a model must answer if tokens are really dropped, computed without dropping any.

Every row stays in every decoder layer; a row that the trace says is gone is hidden from the others by a 4-D mask. A layer
that keeps a state in place of keys has no such mask: there the recurrence is worked out again, over the rows that are left.
One sample at a time, the whole sequence (prompt and generated tokens) at once, no KV cache, no padding: nothing here
is shared with the host but the trace it is checked against. It computes where the model lies, in the model's number format.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokenzoo.method.reduction import ActsAfter
from tokenzoo.method.trace import SampleTrace
from tokenzoo.testing.inputs import encoded_first
from tokenzoo.testing.recurrence import recurrent_layer


@dataclass
class FullPrompt:
    """What the unreduced model computes: the decoder's input, its positions, and the logits.

    `embeddings` [batch, length, hidden]; `positions` [axes, batch, length]; `logits` [batch, length, vocabulary];
    `mask` [batch, length], true where there is no padding. `additions`: what the decoder added to the rows behind a layer
    (DeepStack), [batch, length, hidden]. `blocks` [batch, length]: the number of the image of each row, -1 for text, where the
    tokens of an image see each other (Gemma, by its `token_type_ids` or `mm_token_type_ids`). `words` [batch, length, layers,
    width]: what each token is to each layer (Gemma 4's per-layer inputs, before the embeddings have their say).
    """

    embeddings: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    mask: torch.Tensor
    additions: dict[int, torch.Tensor] = field(default_factory=dict)
    blocks: torch.Tensor | None = None
    words: torch.Tensor | None = None


@dataclass
class OracleSample:
    """One sample: its trace, the embeddings that entered, and tokens merged inside the LLM.

    `merged` maps a place, (decoder layer, "attention" or "layer"), to (entry rows [merged], their new states [merged, hidden])
    after it; (-1, "attention") is the place before layer 0. `numbers`: the entry rows' positions where they were renumbered
    before the LLM. `renumbered`: after which layer which row got which position. `continued`: in layers whose cache was cut,
    how many positions behind the sample's first token the first generated one stands, where that is not what it would be.
    """

    trace: SampleTrace
    entry: torch.Tensor
    merged: dict[tuple[int, ActsAfter], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    numbers: list[int] | None = None
    renumbered: dict[int, dict[int, int]] = field(default_factory=dict)
    continued: dict[int, int] = field(default_factory=dict)


@torch.no_grad()
def full_prompt(model: Any, decoder: Any, inputs: dict[str, Any]) -> FullPrompt:
    """Run the plain model and note what its decoder is given."""
    seen: dict[str, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    outputs: list[torch.Tensor] = []
    additions: dict[int, torch.Tensor] = {}

    def given(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if outputs and not torch.equal(hidden, outputs[-1]):
            additions[len(outputs) - 1] = hidden - outputs[-1]

    def returned(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [decoder.register_forward_pre_hook(note, with_kwargs=True)]
    for layer in decoder.layers:
        handles += [layer.register_forward_pre_hook(given, with_kwargs=True), layer.register_forward_hook(returned)]
    try:
        logits = model(**encoded_first(model, inputs)).logits
    finally:
        for handle in handles:
            handle.remove()
    embeddings = seen["inputs_embeds"]
    batch, length = embeddings.shape[:2]
    positions = seen.get("position_ids")
    if positions is None:
        positions = torch.arange(length, device=embeddings.device)[None]
    positions = positions if positions.ndim == 3 else positions[None]
    mask = inputs.get("attention_mask")
    mask = torch.ones(batch, length, device=embeddings.device) if mask is None else mask
    blocks, words = _image_blocks(inputs, decoder), seen.get("per_layer_inputs")
    return FullPrompt(embeddings, positions.expand(-1, batch, -1), logits, mask.bool(), additions, blocks, words)


def _image_blocks(inputs: dict[str, Any], decoder: Any) -> torch.Tensor | None:
    """Runs of image tokens, numbered in each row."""
    if "token_type_ids" in inputs:
        image = inputs["token_type_ids"] == 1
    elif getattr(decoder.config, "use_bidirectional_attention", None) == "vision":
        image = inputs["mm_token_type_ids"] > 0
    else:
        return None
    begins = image & ~torch.cat([torch.zeros_like(image[:, :1]), image[:, :-1]], dim=1)
    return torch.where(image, begins.cumsum(1), -1)


@torch.no_grad()
def oracle_logits(
    model: Any,
    decoder: Any,
    prompt: FullPrompt,
    index: int,
    sample: OracleSample,
    generated: torch.Tensor,
) -> torch.Tensor:
    """Logits [prompt rows in the last layer + generated, vocabulary] of sample `index`, teacher-forced.

    `generated` [generated] are the tokens that follow the prompt.
    """
    trace, columns = sample.trace, prompt.mask[index].nonzero()[:, 0]
    full = prompt.embeddings[index, columns]
    full_positions = prompt.positions[:, index, columns]
    device = full.device
    gone = torch.tensor(sorted(set(range(trace.prompt_tokens)) - set(trace.entry)), dtype=torch.long, device=device)
    entry_index = torch.tensor(trace.entry, dtype=torch.long, device=device)
    generated = _read(model, decoder, generated)
    following = decoder.embed_tokens(generated)
    hidden = torch.cat([full[gone], sample.entry, following])[None]
    first, count, new = len(gone), len(trace.entry), len(generated)
    entry_positions = full_positions[:, entry_index]
    next_position = full_positions[:, -1:] + 1
    if sample.numbers is not None:
        entry_positions = torch.tensor(sample.numbers, dtype=torch.long, device=device).expand(len(full_positions), -1)
        next_position = entry_positions[:, -1:] + 1
    later = next_position + torch.arange(new, device=device)
    whole = torch.cat([full_positions[:, gone], entry_positions, later], dim=1)
    types = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)
    blocks = _blocks(prompt, index, columns[torch.cat([gone, entry_index])], new)
    masks: dict[int | None, torch.Tensor] = {}
    rotary: dict[str, Any] = {}
    windows_alone = getattr(decoder.config, "use_bidirectional_attention", None) == "vision"  # Gemma 4
    own = _layer_inputs(decoder, prompt, index, columns[torch.cat([gone, entry_index])], generated, hidden)
    hidden = _with_merged(hidden, first, sample.merged.get((-1, "attention")))
    for number, layer in enumerate(decoder.layers):
        places = sample.renumbered.get(number - 1)
        if places:
            whole = _renumbered(whole, first, count, places)
            rotary, masks = {}, {}
        kind, window = types[number], layer_window(decoder, number)
        if kind not in rotary:
            rotary[kind] = _angles(decoder, hidden, whole, kind)
        if number and trace.rows(number) != trace.rows(number - 1):
            masks = {}
        if window not in masks:
            opened = blocks if window is not None or not windows_alone else None
            masks[window] = _mask(first, count, new, trace.rows(number), hidden.dtype, whole[0], window, opened)
        mask, angles = masks[window], rotary[kind]
        unseen = _unseen(trace, number, first, count, new).to(hidden.device)
        if unseen.any():
            mask = mask.clone()
            mask[0, 0, first + count :][unseen] = torch.finfo(mask.dtype).min
        if number in sample.continued:
            moved = whole.clone()
            start = whole[:, first + trace.rows(number)[0], None]
            moved[:, first + count :] = start + sample.continued[number] + torch.arange(new, device=whole.device)
            angles = _angles(decoder, hidden, moved, kind)
        with _masks_allowed(decoder), _merging_inside(layer, first, sample.merged.get((number, "attention"))):
            if kind == "linear_attention":
                present = [*(first + row for row in trace.rows(number)), *range(first + count, whole.shape[1])]
                hidden = recurrent_layer(layer, hidden, present)
            else:
                given = {name: value if name == "shared_kv_states" else value[:, :, number] for name, value in own.items()}
                given |= {"attention_mask": mask, "position_embeddings": angles, "past_key_values": None}
                hidden = layer(hidden, **given)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number in prompt.additions:
            hidden[0, first : first + count] += prompt.additions[number][index, columns][entry_index]
        hidden = _with_merged(hidden, first, sample.merged.get((number, "layer")))
    left = torch.tensor(
        [*(first + row for row in trace.rows(len(decoder.layers))), *range(first + count, first + count + new)], device=device
    )
    return model.get_output_embeddings()(decoder.norm(hidden[0, left]))


def _angles(decoder: Any, hidden: torch.Tensor, positions: torch.Tensor, kind: str) -> Any:
    """cos and sin of a layer of type `kind` at positions [axes, rows]."""
    each = (kind,) if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters else ()
    return decoder.rotary_emb(hidden, positions[0][None] if len(positions) == 1 else positions[:, None], *each)


def _read(model: Any, decoder: Any, generated: torch.Tensor) -> torch.Tensor:
    """Generated tokens as the model reads them: Gemma 4 takes a placeholder for padding."""
    if not hasattr(decoder, "project_per_layer_inputs"):
        return generated
    placeholders = [getattr(model.config, f"{kind}_token_id") for kind in ("image", "video", "audio")]
    return torch.where(torch.isin(generated, generated.new_tensor(placeholders)), decoder.config.pad_token_id, generated)


def _layer_inputs(
    decoder: Any, prompt: FullPrompt, index: int, columns: torch.Tensor, generated: torch.Tensor, hidden: torch.Tensor
) -> dict[str, Any]:
    """What Gemma 4's layers are given besides: a place for keys that later layers read and, in the small models, an input of
    their own for each row, [1, rows, layers, width]."""
    if not hasattr(decoder, "project_per_layer_inputs"):
        return {}
    own: dict[str, Any] = {"shared_kv_states": {}}
    if prompt.words is not None:
        words = torch.cat([prompt.words[index, columns], decoder.get_per_layer_inputs(generated, None)])
        own["per_layer_input"] = decoder.project_per_layer_inputs(hidden, words[None])
    return own


def _with_merged(hidden: torch.Tensor, first: int, merged: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """The states with those of merged rows in their places."""
    if merged is None:
        return hidden
    hidden = hidden.clone()
    hidden[0, first + merged[0]] = merged[1]
    return hidden


@contextmanager
def _merging_inside(layer: Any, first: int, merged: tuple[torch.Tensor, torch.Tensor] | None) -> Iterator[None]:
    """The layer's residual stream gets the merged rows in place, between its attention and its MLP."""
    if merged is None:
        yield
        return

    def write(module: nn.Module, args: Any) -> None:
        args[0][0, first + merged[0]] = merged[1]

    norm = getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm
    handle = norm.register_forward_pre_hook(write)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _masks_allowed(decoder: Any) -> Iterator[None]:
    """Flash attention takes no 4-D mask: here sdpa stands in for it."""
    config, backend = decoder.config, decoder.config._attn_implementation
    config._attn_implementation = backend if backend in ("sdpa", "eager") else "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = backend


def layer_window(decoder: Any, number: int) -> int | None:
    """How far back a decoder layer looks; None where it sees everything."""
    types = getattr(decoder.config, "layer_types", None)
    return decoder.config.sliding_window if types and types[number] == "sliding_attention" else None


def has_keys(decoder: Any, number: int) -> bool:
    """Whether a decoder layer keeps keys and values of its own."""
    return hasattr(getattr(decoder.layers[number], "self_attn", None), "k_proj")


def _unseen(trace: SampleTrace, layer: int, first: int, count: int, new: int) -> torch.Tensor:
    """Which rows generated ones cannot see in a layer though they passed it, bool [new, total]: those cut from its cache, and
    those that a step did not read."""
    unseen = torch.zeros(new, first + count + new, dtype=torch.bool)
    present, cached = trace.rows(layer), set(trace.cache(layer))
    for step in range(new):
        read = set(trace.read(step, layer))
        gone = [first + row for row in present if row not in cached or (trace.visual[row] and row not in read)]
        unseen[step, gone] = True
    return unseen


def _blocks(prompt: FullPrompt, index: int, columns: torch.Tensor, new: int) -> torch.Tensor | None:
    """Which image block each row belongs to, -1 for text and what is generated; None where images are causal too."""
    if prompt.blocks is None:
        return None
    return torch.cat([prompt.blocks[index, columns], columns.new_full((new,), -1)])


def _mask(
    first: int,
    count: int,
    new: int,
    rows: list[int],
    dtype: torch.dtype,
    positions: torch.Tensor,
    window: int | None,
    blocks: torch.Tensor | None,
) -> torch.Tensor:
    """0 where a row may look, the smallest number where not: [1, 1, total, total]. A hidden row sees itself.

    Rows of one image see each other where `blocks` says so; a window counts positions, and the rows that are there.
    """
    total = first + count + new
    device = positions.device
    present = torch.zeros(total, dtype=torch.bool, device=device)
    order = torch.arange(total, device=device)  # where a row stands in the sequence: appended rows stand behind others
    places = torch.tensor([first + row for row in rows], dtype=torch.long, device=device)
    present[places] = present[first + count :] = True
    order[places] = first + torch.arange(len(rows), device=device)
    order[first + count :] = first + len(rows) + torch.arange(new, device=device)
    visible = order[None, :] <= order[:, None]
    if blocks is not None:
        visible |= (blocks[None, :] == blocks[:, None]) & (blocks >= 0)
    if window is not None:
        visible &= (positions[:, None] - positions[None, :] < window) & (order[:, None] - order[None, :] < window)
    visible &= present[None, :]
    visible |= torch.eye(total, dtype=torch.bool, device=device)
    return torch.zeros(total, total, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def _renumbered(whole: torch.Tensor, first: int, count: int, places: dict[int, int]) -> torch.Tensor:
    """Rows at their new places, generated ones behind them; hidden rows keep what they had."""
    whole = whole.clone()
    rows = torch.tensor([first + row for row in places], dtype=torch.long, device=whole.device)
    whole[:, rows] = torch.tensor(list(places.values()), device=whole.device).expand(len(whole), -1)
    new = whole.shape[1] - first - count
    whole[:, first + count :] = (len(places) + torch.arange(new, device=whole.device)).expand(len(whole), -1)
    return whole
