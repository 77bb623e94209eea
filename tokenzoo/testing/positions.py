"""What the oracle is told of a run: position ids by each method's own policy, tokens merged inside the LLM.

Worked out from what the methods returned, call by call; the host, which is checked against it, is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import HALVES, ActsAfter, Reduction
from tokenzoo.testing.case import Case, Outcome
from tokenzoo.testing.oracle import OracleSample
from tokenzoo.testing.recorder import Call


def oracle_sample(
    case: Case, outcome: Outcome, index: int, reducers: Sequence[TokenReducer], entered: torch.Tensor
) -> OracleSample:
    """Everything the oracle needs of one sample; `entered` [rows, hidden] are the embeddings that entered."""
    sample = outcome.trace.samples[index]
    numbers = None if case.mrope else _entry_numbers(case, outcome, index, reducers)
    renumbered: dict[int, dict[int, int]] = {}
    merged: dict[tuple[int, ActsAfter], tuple[torch.Tensor, torch.Tensor]] = {}
    calls = {(call.layer, call.method): call for call in outcome.inside[index] if call.decision == "pick"}
    acting = sorted({layer for reducer in reducers for layer in reducer.layers(outcome.trace.layers)})
    count = sum(sample.visual)
    order = sorted(enumerate(reducers), key=lambda numbered: HALVES.index(numbered[1].acts_after))
    for layer in acting:
        rows = sample.rows(layer)
        places: dict[int, int] = {}
        for number, reducer in order:
            kept = reducer.kept(count, outcome.trace.layers)
            if layer not in kept:
                continue
            before, visual = rows, [row for row in rows if sample.visual[row]]
            rows = _left(rows, visual, calls.get((layer, number)), kept[layer])
            call = calls.get((layer, number))
            if call is not None and isinstance(call.result, Reduction):
                features = call.result.features
                anchors = torch.tensor([visual[anchor] for anchor in call.anchors], dtype=torch.long, device=features.device)
                states = (anchors, features)
                place = layer, reducer.acts_after
                known = merged.get(place)
                merged[place] = states if known is None else tuple(map(torch.cat, zip(known, states, strict=True)))  # type: ignore[assignment]
            if reducer.layer_positions == "renumber" and not case.mrope and rows != before:
                places = {row: position for position, row in enumerate(rows)}
        if places:
            renumbered[layer] = places
    continued = {} if case.mrope else _continued(outcome, index, reducers)
    return OracleSample(sample, entered, merged, numbers, renumbered, continued)


def _continued(outcome: Outcome, index: int, reducers: Sequence[TokenReducer]) -> dict[int, int]:
    """Layers whose cache a method cut that counts generated tokens from what is left: {layer: that number}."""
    sample, found = outcome.trace.samples[index], {}
    layers = outcome.trace.layers
    entered = sum(sample.visual[row] for row in sample.rows(0))
    for layer in range(layers):
        left = sum(sample.visual[row] for row in sample.rows(layer))
        for number, reducer in enumerate(reducers):
            declared = reducer.cached(entered, layers)
            if layer not in declared or not left:
                continue
            made = [
                len(call.anchors)
                for call in outcome.inside[index]
                if (call.decision, call.method, call.layer) == ("pick_cached", number, layer)
            ]
            count = declared[layer]
            after = made[0] if made else min(left, max(count, 0)) if count is not None else left
            if after < left and reducer.cache_positions == "renumber":
                found[layer] = len(sample.cache(layer))
            left = after
    return found


def _left(rows: list[int], visual: list[int], call: Call | None, count: int | None) -> list[int]:
    """The rows that a method leaves after a layer."""
    if call is None:
        return [row for row in rows if row not in visual] if count is not None and count <= 0 else rows
    appended = call.result.appended if isinstance(call.result, Reduction) else 0
    chosen = [visual[anchor] for anchor in call.anchors]
    behind = chosen[len(chosen) - appended :]
    stay = set(chosen[: len(chosen) - appended])
    left: list[int] = []
    for place, row in enumerate(rows):
        if row not in visual or row in stay:
            left.append(row)
        ends = row in visual and (place + 1 == len(rows) or rows[place + 1] not in visual)
        if ends:
            start = max((i for i in range(place) if rows[i] not in visual), default=-1)
            left += [token for token in behind if token in rows[start + 1 : place + 1]]
    return left


def _entry_numbers(case: Case, outcome: Outcome, index: int, reducers: Sequence[TokenReducer]) -> list[int] | None:
    """The position of each entry row counted from 0, where a method renumbered; None where every method keeps positions."""
    sample = outcome.trace.samples[index]
    sources = [
        [*_behind_encoder(encoder, reducers), *calls]
        for encoder, calls in zip(outcome.encoder[index], outcome.entering[index], strict=True)
    ]
    order = [call.method for early in (True, False) for calls in sources for call in calls if call.early == early]
    acting = list(dict.fromkeys(sorted(order, key=lambda method: (order.index(method), method))))
    renumbering = [method for method in acting if reducers[method].entry_positions == "renumber"]
    if not renumbering:
        return None
    if renumbering[-1] == acting[-1]:
        return list(range(len(sample.entry)))
    # what the last renumbering method left, in the order in which it stood; later ones keep those numbers
    last = acting.index(renumbering[-1])
    keys: list[tuple[tuple[int, int], tuple[Any, ...]]] = []
    finals: dict[int, tuple[Any, ...]] = {}
    tokens_of = {row for source in sample.sources for row in source.rows}
    for row, column in enumerate(sample.entry):
        if row not in tokens_of:
            keys.append(((column, 0), ("text", row)))
    prompt = case.inputs["input_ids"][index][case.prompt.mask[index]].tolist()
    placeholders = {
        kind: [column for column, token in enumerate(prompt) if token == case.family.token_id(case.model, kind)]
        for kind in ("image", "video")
    }
    for number, (source, calls) in enumerate(zip(sample.sources, sources, strict=True)):
        known = placeholders[source.source.kind]
        columns = [known.pop(0) for _ in range(source.source.tokens)]
        state = list(range(len(columns)))
        since: list[int] | None = None
        for call in calls:
            if acting.index(call.method) <= last:
                state = [state[anchor] for anchor in call.anchors]
            else:
                since = call.anchors if since is None else [since[anchor] for anchor in call.anchors]
        raster = state == sorted(state)
        for place, token in enumerate(state):
            key = (columns[token], 0) if raster else (_run_start(columns, columns[token]), place)
            keys.append((key, ("source", number, place)))
        for place, row in enumerate(source.rows):
            finals[row] = ("source", number, place if since is None else since[place])
    ranks = {key: rank for rank, (_, key) in enumerate(sorted(keys, key=lambda item: item[0]))}
    return [ranks[finals.get(row, ("text", row))] for row in range(len(sample.entry))]


def _behind_encoder(calls: list[Call], reducers: Sequence[TokenReducer]) -> list[Call]:
    """All calls inside the encoder as one of a method before the projector: of the last that renumbers, else of the last."""
    if not calls:
        return []
    acting = [number for number, reducer in enumerate(reducers) if reducer.acts_in_encoder]
    number = [*acting, *(number for number in acting if reducers[number].entry_positions == "renumber")][-1]
    views, patches = calls[0].features.shape[:2]
    anchors = torch.arange(patches).expand(views, -1)
    for call in calls:
        anchors = anchors.gather(1, call.result.anchors if isinstance(call.result, Reduction) else call.result)
    flat = (anchors + patches * torch.arange(views)[:, None]).flatten()
    return [Call(number, None, True, calls[-1].features, flat, [], "reduce")]


def _run_start(columns: list[int], column: int) -> int:
    """The first column of the unbroken run of a picture's columns that holds `column`."""
    while column - 1 in columns:
        column -= 1
    return column
