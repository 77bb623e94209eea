"""The decoder's input after the reductions before the LLM: fewer rows, their positions, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tokenzoo.host.batch import Layout
from tokenzoo.host.prompt import PlacedSource, Prompt
from tokenzoo.method.reduction import PositionPolicy
from tokenzoo.method.validation import Checks
from tokenzoo.method.visual_tokens import TextSignals, VisualTokens

#: Lets the methods that act before the LLM reduce one source.
Reduce = Callable[[PlacedSource, VisualTokens], None]


@dataclass
class EntrySample:
    """One sample as it enters the LLM.

    `columns` [rows]: the column of the full prompt each row stands at. `visual`, `text`: which rows are which,
    ascending. `source_rows`: for each source of the sample, the rows its tokens became. `numbered` [rows]: position ids
    where a method renumbered them, counted from the sample's first. `text_behind`: text tokens behind the last visual one.
    """

    columns: torch.Tensor
    visual: torch.Tensor
    text: torch.Tensor
    source_rows: list[torch.Tensor]
    text_behind: int
    numbered: torch.Tensor | None = None


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
    return EntrySample(columns, visual, _without(len(columns), visual), rows, prompt.behind[sample])


def _without(total: int, indices: torch.Tensor) -> torch.Tensor:
    """0..total-1 without `indices` (ascending, distinct), without reading any value: the k-th missing index."""
    rank = torch.arange(total - len(indices), device=indices.device)
    return rank + torch.searchsorted(indices - torch.arange(len(indices), device=indices.device), rank, right=True)


@dataclass
class SampleText:
    """`TextSignals` of one sample: its embeddings, which of its rows are text, how many stand behind the visual tokens."""

    states: torch.Tensor
    rows: torch.Tensor
    behind: int
    question: str | None
    embedded: Callable[[list[str]], torch.Tensor]

    def all(self) -> torch.Tensor:
        return self.states[self.rows]

    def after(self) -> torch.Tensor:
        return self.states[self.rows[len(self.rows) - self.behind :]]

    def embed(self, words: list[str]) -> torch.Tensor:
        return self.embedded(words)


def reduce_entry(
    prompt: Prompt,
    full: Layout,
    embeddings: torch.Tensor,
    reduce: Reduce,
    policies: Sequence[PositionPolicy],
    questions: Sequence[str] | None,
    embed_words: Callable[[list[str]], torch.Tensor],
    checks: Checks,
) -> tuple[Entry, list[torch.Tensor]]:
    """Let the methods reduce every source; return the entry and each sample's embeddings [rows, hidden].

    `policies`: what each method does to position ids, in the order in which they are written.
    """
    samples, rows, reduced = [], [], False
    for sample in range(len(full.columns)):
        before = _unreduced_sample(prompt, full, sample, embeddings.device)
        states = full.take(embeddings, sample)
        sources = prompt.of_sample(sample)
        question = questions[sample * len(questions) // len(full.columns)] if questions else None
        for source, source_rows in zip(sources, before.source_rows, strict=True):
            text = SampleText(states, before.text, before.text_behind, question, embed_words)
            see_source(source, states[source_rows], text, reduce, checks)
            reduced = reduced or source.tokens is not None
        made, left = _reduced_sample(before, sources, states)
        made.numbered = _numbered(before, sources, made, policies)
        samples.append(made)
        rows.append(left)
    if not reduced:
        return unreduced_entry(prompt, full, embeddings.device), []
    layout = Layout.of_counts([len(states) for states in rows], full.pad_right, embeddings.device)
    return Entry(full, layout, samples, reduced=True), rows


def see_source(source: PlacedSource, embeddings: torch.Tensor, text: TextSignals, reduce: Reduce, checks: Checks) -> None:
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
            has_cls=source.has_cls,
            encoder=source.encoder,
            text=text,
            checks=checks,
        )
    else:
        tokens = source.tokens
        assert source.projected is not None
        source.follow(embeddings.device)
        tokens.features, tokens.text, tokens.memory = source.projected.to(embeddings), text, source.memory
        tokens.early = False
        checks.pending += tokens.checks.pending
        tokens.checks = checks
    reduce(source, tokens)
    if tokens.anchors is not None:
        source.tokens = tokens


@dataclass
class _Places:
    """Where a source's tokens and then its structural tokens go: the prompt column each stands at, the key that orders it."""

    columns: torch.Tensor
    place: torch.Tensor
    structural: torch.Tensor


def _places(source: PlacedSource, anchors: torch.Tensor | None) -> _Places:
    """The places of a source of which the tokens `anchors` are left (None: all, untouched).

    - Untouched: every token at its own place.
    - Tokens in raster order: at their own places, structural tokens (newlines) among them at theirs.
    - Tokens in another order: at the first place of the run of placeholders in which they stood (text between frames parts
      runs), in the order returned, structural tokens behind them.
    - Reduced before tiles were put together or frames pooled, so that no token has a place in the LLM: the first places in
      order; newlines that end rows are dropped, one final newline stays.
    """
    content, columns = source.content, source.columns
    none = content[:0]
    if anchors is None:
        return _Places(columns, columns, none)
    visual = source.visual
    mapped = source.projected is None or visual.one_to_one
    index = anchors if mapped else torch.arange(len(anchors), device=columns.device)
    own = content[index.clamp(max=len(content) - 1)] if len(content) else none
    structural = (visual.view_of_token < 0).nonzero()[:, 0].to(columns.device) if visual.source.structural else none
    if not mapped and len(structural) > 1:  # newlines of rows that are no more
        structural = none
    together = torch.cat([own, structural])
    places, starts = columns[together], _run_starts(columns)[together]
    if not mapped or not len(structural):
        return _Places(places, starts, structural)
    raster = (own[1:] > own[:-1]).all()  # a tensor: the device is not waited for
    return _Places(places, torch.where(raster, places, starts), structural)


def _run_starts(columns: torch.Tensor) -> torch.Tensor:
    """For each of a source's columns the first one of the unbroken run in which it lies."""
    begins = torch.cat([columns.new_ones(min(1, len(columns)), dtype=torch.bool), columns[1:] - columns[:-1] > 1])
    return torch.where(begins, columns, 0).cummax(0).values


def _order(before: EntrySample, places: Sequence[_Places]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The order of text and sources' rows, and the row that each text token, and each token of each source, becomes."""
    text = before.columns[before.text]
    order = torch.cat([text, *(piece.place for piece in places)]).argsort(stable=True)
    return order, list(order.argsort().split([len(text), *(len(piece.place) for piece in places)]))


def _reduced_sample(
    before: EntrySample, sources: Sequence[PlacedSource], states: torch.Tensor
) -> tuple[EntrySample, torch.Tensor]:
    """The sample as the methods left it, and its embeddings."""
    places = [_places(source, None if source.tokens is None else source.tokens.anchors) for source in sources]
    order, rows = _order(before, places)
    pieces = [states[before.text]]
    for source, source_rows, piece in zip(sources, before.source_rows, places, strict=True):
        own = states[source_rows]
        pieces.append(own if source.tokens is None else torch.cat([source.tokens.features, own[piece.structural]]))
    columns = torch.cat([before.columns[before.text], *(piece.columns for piece in places)])[order]
    visual = torch.cat(rows[1:]).sort().values if len(rows) > 1 else columns[:0]
    made = EntrySample(columns, visual, _without(len(order), visual), rows[1:], before.text_behind)
    return made, torch.cat(pieces)[order]


def _numbered(
    before: EntrySample, sources: Sequence[PlacedSource], made: EntrySample, policies: Sequence[PositionPolicy]
) -> torch.Tensor | None:
    """Position ids counted from 0 where a method renumbered them, None where all keep theirs.

    The last method that renumbers counts what it left. A later one that keeps positions takes them along.
    """
    steps_of = [[*([] if source.inside_step is None else [source.inside_step]), *source.steps] for source in sources]
    acted = {step.method: early for steps in steps_of for early, step in enumerate(steps) if step.anchors is not None}
    acting = sorted(acted, key=lambda method: acted[method])
    renumbering = [method for method in acting if policies[method] == "renumber"]
    if not renumbering:
        return None
    everything = torch.arange(len(made.columns), device=made.columns.device)
    if renumbering[-1] == acting[-1]:
        return everything
    kept: list[torch.Tensor | None] = []
    since: list[torch.Tensor | None] = []
    for steps in steps_of:
        anchors: list[torch.Tensor | None] = [None, None]  # up to the last method that renumbers, and after it
        later = False
        for step in steps:
            if step.anchors is not None:
                known = anchors[later]
                anchors[later] = step.anchors if known is None else known[step.anchors]
            later = later or step.method == renumbering[-1]
        kept.append(anchors[0])
        since.append(anchors[1])
    places = [_places(source, anchors) for source, anchors in zip(sources, kept, strict=True)]
    _, rows = _order(before, places)
    numbers = everything.clone()
    numbers[made.text] = rows[0]
    for source_rows, then, now, piece in zip(rows[1:], since, made.source_rows, places, strict=True):
        tokens = len(source_rows) - len(piece.structural)
        chosen = source_rows if then is None else torch.cat([source_rows[:tokens][then], source_rows[tokens:]])
        numbers[now] = chosen
    return numbers


def entry_positions(entry: Entry, given: torch.Tensor | None, mrope: bool) -> torch.Tensor:
    """Positions [batch, length] or, with M-RoPE, [axes, batch, length] of the reduced input.

    `given` are the full prompt's (None: 0, 1, ...). Each row has that of the column it stands at, or its new number counted
    from the sample's first. Sets `entry.next_position` [axes, batch], the first generated token's: the last prompt token's
    plus one on each axis, as `generate` continues (M-RoPE's axes may differ there).
    """
    device = entry.samples[0].columns.device
    if given is None:
        given = torch.arange(entry.full.length)[None]
    given = given.to(device)
    axes = (given if given.ndim == 3 else given[None]).expand(-1, len(entry.samples), -1)
    rows, following = [], []
    for index, sample in enumerate(entry.samples):
        if sample.numbered is None or mrope:
            columns = entry.full.columns[index]
            rows.append(axes[:, index, sample.columns])
            last = axes[:, index, -1:] if columns is None else axes[:, index, columns[-1:]]
            following.append(last[:, 0] + 1)
        else:
            rows.append(axes[:, index, sample.columns[:1]] + sample.numbered)
            following.append(rows[-1][:, -1] + 1)
    entry.next_position = torch.stack(following, dim=1)
    padded = entry.layout.pad([positions.T for positions in rows]).permute(2, 0, 1)
    if len(padded) == 4:  # the first axis only tells packed sequences apart: it must stay gapless
        padded[0] = torch.arange(entry.layout.length, device=device)
    return padded if given.ndim == 3 else padded[0]
