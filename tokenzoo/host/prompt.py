"""Where the visual tokens of a call lie in its prompt: read off input_ids, or given as spans."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.encoder import RecordedEncoder
from tokenzoo.host.encoder_reduction import Inside
from tokenzoo.host.family import VisualSource
from tokenzoo.method.decoder_layer import Places
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.method.workload import Source, guessed_grid

KINDS = ("image", "video")
Span = tuple[int, int]


@dataclass
class EncodedSource:
    """One image or video that went through the encoder.

    `tokens` and `projected` are set where a method reduced it before the projector; `tokens` also where one reduced it
    before the LLM. `steps`: for each method that was asked, in order, its number and what it left. `inside`: what became of its
    patches inside the encoder, where methods act there, and `inside_step` what that comes to.
    """

    visual: VisualSource
    encoder: RecordedEncoder | None = None
    has_cls: bool = False
    tokens: VisualTokens | None = None
    projected: torch.Tensor | None = None
    steps: list[EntryRecord] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    inside: Inside | None = None
    inside_step: EntryRecord | None = None


@dataclass(frozen=True)
class EntryRecord:
    """What method number `method` left of one source: the view of each token, of `views`, and the anchors that it returned
    (None: it left the source alone)."""

    method: int
    view: torch.Tensor
    views: int
    anchors: torch.Tensor | None

    def to(self, device: torch.device) -> EntryRecord:
        return replace(self, view=self.view.to(device), anchors=None if self.anchors is None else self.anchors.to(device))


@dataclass
class PlacedSource(EncodedSource):
    """An encoded source in the batch: whose it is, and the columns of its placeholders."""

    sample: int = 0
    columns: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def content(self) -> torch.Tensor:
        """Which of its placeholders are not structural, as indices."""
        visual = self.visual
        if not visual.source.structural:
            return torch.arange(len(visual.view_of_token), device=self.columns.device)
        return (visual.view_of_token >= 0).nonzero()[:, 0].to(self.columns.device)

    def follow(self, device: torch.device) -> None:
        """Bring what was decided beside the encoder to the device of the LLM."""
        tokens = self.tokens
        if tokens is None or tokens.view.device == device:
            return
        tokens.view = tokens.view.to(device)
        tokens.anchors = None if tokens.anchors is None else tokens.anchors.to(device)
        tokens.assignment = None if tokens.assignment is None else tokens.assignment.to(device)
        self.steps = [step.to(device) for step in self.steps]
        self.inside_step = None if self.inside_step is None else self.inside_step.to(device)


@dataclass
class Prompt:
    """The images and videos of one prefill, and scratch memory for the methods, one dictionary per sample.

    `behind`: for each sample, how many text tokens stand behind its last visual token.
    """

    sources: list[PlacedSource]
    memories: dict[int, dict[str, Any]] = field(default_factory=dict)
    behind: list[int] = field(default_factory=list)

    def enter(self, padding: torch.Tensor | None, batch: int, length: int, device: torch.device) -> None:
        """Count the text behind the visual tokens (`padding` [batch, length] on the CPU), then move columns to `device`."""
        ends = [0] * batch
        for source in self.sources:
            if len(source.columns):
                ends[source.sample] = max(ends[source.sample], int(source.columns[-1]) + 1)
        self.behind = [length - end if padding is None else int(padding[i, end:].sum()) for i, end in enumerate(ends)]
        for source in self.sources:
            source.columns = source.columns.to(device)

    def of_sample(self, sample: int) -> list[PlacedSource]:
        return [source for source in self.sources if source.sample == sample]

    def memory(self, sample: int) -> dict[str, Any]:
        return self.memories.setdefault(sample, {})


def place(encoded: Sequence[EncodedSource], placeholder: torch.Tensor, kind: str) -> list[PlacedSource]:
    """Hand the placeholders [batch, length] of one kind (on the CPU) out to the sources, in order.

    `generate` encodes each picture once and then repeats the samples (beams): where there are more placeholders than
    tokens, consecutive samples share theirs. Raises UnsupportedError where placeholders and sources do not match.
    """
    counts = placeholder.sum(1).tolist()
    tokens = sum(len(source.visual.view_of_token) for source in encoded)
    copies = sum(counts) // tokens if tokens else 1
    if tokens * copies != sum(counts) or len(counts) % max(copies, 1):
        raise UnsupportedError(
            f"input_ids hold {sum(counts)} {kind} tokens, the {kind}s make {tokens}. Each {kind} needs all its "
            "placeholders in one call: chunked prefill is not supported; use the model's own processor."
        )
    placed, queue = [], list(encoded)
    for first in range(0, len(counts), max(copies, 1)):
        used, own = 0, []
        while queue and used < counts[first]:
            own.append((queue.pop(0), used))
            used += len(own[-1][0].visual.view_of_token)
        for sample in range(first, first + copies):
            columns = placeholder[sample].nonzero()[:, 0]
            for source, start in own:
                part = columns[start : start + len(source.visual.view_of_token)]
                placed.append(
                    PlacedSource(
                        source.visual,
                        source.encoder,
                        source.has_cls,
                        copy(source.tokens),
                        source.projected,
                        list(source.steps),
                        dict(source.memory),
                        source.inside,
                        source.inside_step,
                        sample,
                        part,
                    )
                )
    return placed


def places(sources: Sequence[PlacedSource], rows: Sequence[torch.Tensor], total: int) -> Places:
    """Which of a sample's sources each of its `total` entry rows belongs to, and where it stands there.

    `rows`: those of each source.
    """
    device = rows[0].device if rows else torch.device("cpu")
    nowhere, kinds = torch.full((3, total), -1, device=device), tuple(source.visual.kind for source in sources)
    found = Places(nowhere[0], nowhere[1], nowhere[2], kinds)
    for number, (source, own) in enumerate(zip(sources, rows, strict=True)):
        tokens, visual = source.tokens, source.visual
        view = visual.view_of_token.to(device)
        index = torch.arange(len(view), device=device)
        grids = visual.grids
        if tokens is not None and tokens.anchors is not None:  # its tokens first, structural ones behind them
            view, index = tokens.view.to(device), tokens.anchors.to(device)
            grids = tokens.grids
        elif visual.source.structural:
            index = (view >= 0).cumsum(0) - 1
        starts = torch.tensor([0, *(height * width for height, width in grids)], device=device).cumsum(0)
        found.source[own] = number
        own = own[: len(view)]
        found.view[own] = view
        found.patch[own] = torch.where(view >= 0, index - starts[view.clamp(min=0)], -1)
    return found


def prompt_of_spans(spans: Sequence[Span | Sequence[Span]], batch: int, length: int) -> Prompt:
    """The prompt of a bare decoder: `spans` holds for each sample one (start, end) or several.

    They are columns of the batch, padding counted. A span's grid is unknown: it is taken as a square, or as one row where
    its length is no square number. A batch that is a multiple of the spans (beams) repeats each sample's.
    Raises UserError for spans that overlap or leave the batch.
    """
    if not spans or batch % len(spans):
        raise UserError(f"visual= holds spans for {len(spans)} samples, the batch has {batch}. Give one entry a sample.")
    sources = []
    for sample in range(batch):
        given = spans[sample // (batch // len(spans))]
        several: Any = [given] if given and isinstance(given[0], int) else given
        for (_, before), (start, _) in pairwise(sorted(several)):
            if start < before:
                raise UserError(f"Spans of sample {sample} overlap: one begins at column {start}, another ends at {before}.")
        for start, end in several:
            if not 0 <= start <= end <= length:
                raise UserError(f"Span ({start}, {end}) of sample {sample} does not lie within its {length} tokens.")
            tokens = end - start
            grids = (guessed_grid(tokens),)
            visual = VisualSource(Source("image", (tokens,), grids=grids), torch.zeros(tokens, dtype=torch.long), grids, True)
            columns = torch.arange(start, end)
            sources.append(PlacedSource(visual, sample=sample, columns=columns))
    return Prompt(sources)
