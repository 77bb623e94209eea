"""The decoder's input after the reductions before the LLM: fewer rows, their positions, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tokenzoo.host.batch import Layout
from tokenzoo.host.prompt import PlacedSource, Prompt
from tokenzoo.method.events import VisualTokens


@dataclass
class EntrySample:
    """One sample as it enters the LLM.

    `columns` [rows]: the column of the full prompt each row stands at. `visual`, `text`: which rows are which,
    ascending. `source_rows`: for each source of the sample, the rows its tokens became.
    """

    columns: torch.Tensor
    visual: torch.Tensor
    text: torch.Tensor
    source_rows: list[torch.Tensor]


@dataclass
class Entry:
    """The batch as it enters the LLM. `reduced` tells whether anything was removed or changed before it."""

    full: Layout
    layout: Layout
    samples: list[EntrySample]
    reduced: bool = False
    next_position: torch.Tensor | None = None


def unreduced_entry(prompt: Prompt, full: Layout, device: torch.device) -> Entry:
    """The entry where nothing happens before the LLM."""
    return Entry(full, full, [_unreduced_sample(prompt, full, sample, device) for sample in range(len(full.columns))])


def _columns(full: Layout, sample: int, device: torch.device) -> torch.Tensor:
    columns = full.columns[sample]
    return torch.arange(full.length, device=device) if columns is None else columns


def _unreduced_sample(prompt: Prompt, full: Layout, sample: int, device: torch.device) -> EntrySample:
    columns = _columns(full, sample, device)
    sources = prompt.of_sample(sample)
    rows = [torch.searchsorted(columns, source.columns) for source in sources]
    visual = torch.cat(rows).sort().values if rows else columns[:0]
    return EntrySample(columns, visual, _without(len(columns), visual), rows)


def _without(total: int, indices: torch.Tensor) -> torch.Tensor:
    """0..total-1 without `indices` (ascending, distinct), without reading any value: the k-th missing index."""
    rank = torch.arange(total - len(indices), device=indices.device)
    return rank + torch.searchsorted(indices - torch.arange(len(indices), device=indices.device), rank, right=True)


def reduce_entry(
    prompt: Prompt, full: Layout, embeddings: torch.Tensor, reduce: Callable[[VisualTokens], None]
) -> tuple[Entry, list[torch.Tensor]]:
    """Let the methods reduce every source; return the entry and each sample's embeddings [rows, hidden]."""
    samples, rows, reduced = [], [], False
    for sample in range(len(full.columns)):
        columns = _columns(full, sample, embeddings.device)
        before = _unreduced_sample(prompt, full, sample, embeddings.device)
        states = full.take(embeddings, sample)
        pieces = [_Piece(before.columns[before.text], states[before.text], before.columns[before.text])]
        for source, source_rows in zip(prompt.of_sample(sample), before.source_rows, strict=True):
            see_source(source, states[source_rows], partial(torch.index_select, states, 0, before.text), reduce)
            pieces.append(_piece_of(source, states[source_rows]))
            reduced = reduced or source.tokens is not None
        order = torch.cat([piece.place for piece in pieces]).argsort(stable=True)
        new_rows = order.argsort().split([len(piece.place) for piece in pieces])
        visual = torch.cat(new_rows[1:]).sort().values if len(pieces) > 1 else columns[:0]
        samples.append(
            EntrySample(
                torch.cat([piece.columns for piece in pieces])[order],
                visual,
                _without(len(order), visual),
                list(new_rows[1:]),
            )
        )
        rows.append(torch.cat([piece.states for piece in pieces])[order])
    if not reduced:
        return unreduced_entry(prompt, full, embeddings.device), []
    layout = Layout.of_counts([len(states) for states in rows], full.pad_right, embeddings.device)
    return Entry(full, layout, samples, reduced=True), rows


def see_source(
    source: PlacedSource,
    embeddings: torch.Tensor,
    text: Callable[[], torch.Tensor],
    reduce: Callable[[VisualTokens], None],
) -> None:
    """Show one source's embeddings to the methods; `source.tokens` stays None where nobody reduced them."""
    visual = source.visual
    if source.tokens is None:
        content = source.content
        tokens = VisualTokens(
            kind=visual.kind,
            features=embeddings[content] if visual.source.structural else embeddings,
            view=visual.view_of_token.to(embeddings.device)[content],
            grids=visual.grids,
            memory=source.memory,
            text_embeddings=text,
        )
    else:
        tokens = source.tokens
        assert source.projected is not None
        tokens.features, tokens.text_embeddings, tokens.memory = source.projected.to(embeddings), text, source.memory
    reduce(tokens)
    if tokens.anchors is not None:
        source.tokens = tokens


@dataclass
class _Piece:
    """Rows that go into the sample: the prompt column each stands at, its state, and the key that orders it."""

    columns: torch.Tensor
    states: torch.Tensor
    place: torch.Tensor


def _piece_of(source: PlacedSource, embeddings: torch.Tensor) -> _Piece:
    """A source's rows. Structural tokens keep their places among kept tokens that are in raster order; otherwise
    they follow. Tokens that map to no place in the LLM (pooled or tiled before) take the first places in order, and
    row newlines, which would separate nothing, go (a single newline that ends the source stays)."""
    tokens, content = source.tokens, source.content
    if tokens is None:
        return _Piece(source.columns, embeddings, source.columns)
    assert tokens.anchors is not None
    visual = source.visual
    mapped = source.projected is None or visual.one_to_one
    places = tokens.anchors if mapped else torch.arange(len(tokens.features), device=embeddings.device)
    columns = source.columns[content][places.clamp(max=len(content) - 1)] if len(content) else source.columns[:0]
    structural = (visual.view_of_token < 0).nonzero()[:, 0].to(embeddings.device) if visual.source.structural else None
    if structural is None or (not mapped and len(structural) > 1):
        return _Piece(columns, tokens.features, source.columns[:1].expand(len(columns)))
    raster = mapped and bool((columns.diff() > 0).all())
    ends = source.columns[structural]
    place = torch.cat([columns, ends]) if raster else source.columns[:1].expand(len(columns) + len(ends))
    return _Piece(torch.cat([columns, ends]), torch.cat([tokens.features, embeddings[structural]]), place)


def entry_positions(entry: Entry, given: torch.Tensor | None, keep: bool) -> torch.Tensor:
    """Positions [batch, length] or, with M-RoPE, [axes, batch, length] of the reduced input.

    `given` are the full prompt's (None: 0, 1, ...). With `keep` each row has that of the column it stands at, else
    they are renumbered from the sample's first. Sets `entry.next_position` [axes, batch], the first generated token's:
    the last prompt token's plus one on each axis, as `generate` continues (M-RoPE's axes may differ there).
    """
    device = entry.samples[0].columns.device
    if given is None:
        given = torch.arange(entry.full.length, device=device)[None]
    axes = (given if given.ndim == 3 else given[None]).expand(-1, len(entry.samples), -1)
    if keep:
        kept = [axes[:, i, sample.columns] for i, sample in enumerate(entry.samples)]
        ends = [entry.full.length - 1 if columns is None else columns[-1] for columns in entry.full.columns]
        entry.next_position = torch.stack([axes[:, i, end] + 1 for i, end in enumerate(ends)], dim=1)
    else:
        kept = [
            axes[:, i, sample.columns[:1]] + torch.arange(len(sample.columns), device=device)
            for i, sample in enumerate(entry.samples)
        ]
        entry.next_position = torch.stack([positions[:, -1] + 1 for positions in kept], dim=1)
    padded = entry.layout.pad([positions.T for positions in kept]).permute(2, 0, 1)
    if len(padded) == 4:  # the first axis only tells packed sequences apart: it must stay gapless
        padded[0] = torch.arange(entry.layout.length, device=device)
    return padded if given.ndim == 3 else padded[0]
