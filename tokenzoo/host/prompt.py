"""Where the visual tokens of a call lie in its prompt: read off input_ids and pixels, or given as spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.events import VisualTokens
from tokenzoo.host.family import Family, VisualSource
from tokenzoo.workload import Source

KINDS = ("image", "video")
Span = tuple[int, int]


@dataclass
class PlacedSource:
    """One image or video of the batch: whose it is, the columns of its placeholders, what became of it so far.

    `tokens` and `projected` are set where a method reduced it before the projector; `tokens` also after `pre_llm`.
    """

    visual: VisualSource
    sample: int
    columns: torch.Tensor
    tokens: VisualTokens | None = None
    projected: torch.Tensor | None = None

    @property
    def content(self) -> torch.Tensor:
        """Which of its placeholders are not structural, as indices."""
        return content_indices(self.visual).to(self.columns.device)


def content_indices(visual: VisualSource) -> torch.Tensor:
    """Indices of a source's non-structural tokens."""
    if not visual.source.structural:
        return torch.arange(len(visual.view_of_token))
    return (visual.view_of_token >= 0).nonzero()[:, 0]


@dataclass
class Prompt:
    """The images and videos of one prefill, and scratch memory for the methods, one dictionary per sample."""

    sources: list[PlacedSource]
    memories: list[dict[str, Any]] = field(default_factory=list)

    def of_sample(self, sample: int) -> list[PlacedSource]:
        return [source for source in self.sources if source.sample == sample]

    def of_kind(self, kind: str) -> list[PlacedSource]:
        return [source for source in self.sources if source.visual.kind == kind]

    def memory(self, sample: int) -> dict[str, Any]:
        while len(self.memories) <= sample:
            self.memories.append({})
        return self.memories[sample]


def prompt_of_call(family: Family, model: nn.Module, call: Mapping[str, Any]) -> Prompt:
    """Find each image's and video's placeholders in `input_ids`.

    Raises UnsupportedError where there are pixels but no input_ids, or where the placeholders do not match them.
    """
    sources: list[PlacedSource] = []
    ids = call.get("input_ids")
    for kind in KINDS:
        found = family.sources(model, call, kind)
        if found and ids is None:
            raise UnsupportedError(
                "The call has pixels but no input_ids, so the visual tokens cannot be found. Pass input_ids, or apply "
                "to the decoder alone with visual=[(start, end), ...]."
            )
        if found:
            sources += place(found, ids == family.token_id(model, kind), kind)
    return Prompt(sources)


def place(found: Sequence[VisualSource], placeholder: torch.Tensor, kind: str) -> list[PlacedSource]:
    """Hand the placeholders [batch, length] out to the sources, in order."""
    counts = placeholder.sum(1).tolist()
    placed, queue = [], list(found)
    for sample, count in enumerate(counts):
        columns = placeholder[sample].nonzero()[:, 0]
        used = 0
        while queue and used + len(queue[0].view_of_token) <= count:
            tokens = len(queue[0].view_of_token)
            placed.append(PlacedSource(queue.pop(0), sample, columns[used : used + tokens]))
            used += tokens
        if used != count:
            queue = queue or [found[-1]]
            break
    if queue:
        expected = sum(len(source.view_of_token) for source in found)
        raise UnsupportedError(
            f"input_ids hold {sum(counts)} {kind} tokens, the {kind}s make {expected}. Each {kind} needs all its "
            "placeholders in one call: chunked prefill is not supported; use the model's own processor."
        )
    return placed


def prompt_of_spans(spans: Sequence[Span | Sequence[Span]], batch: int, length: int, device: torch.device) -> Prompt:
    """The prompt of a bare decoder: `spans` holds for each sample one (start, end) or several.

    A batch that is a multiple of the spans (beams) repeats each sample's.
    """
    if not spans or batch % len(spans):
        raise UserError(f"visual= holds spans for {len(spans)} samples, the batch has {batch}. Give one entry a sample.")
    sources = []
    for sample in range(batch):
        given = spans[sample // (batch // len(spans))]
        for start, end in [given] if given and isinstance(given[0], int) else given:  # type: ignore[list-item]
            if not 0 <= start <= end <= length:
                raise UserError(f"Span ({start}, {end}) of sample {sample} does not lie within its {length} tokens.")
            tokens = end - start
            visual = VisualSource(
                Source("image", (tokens,)), torch.zeros(tokens, dtype=torch.long), ((1, tokens),), ((1, tokens),), True
            )
            sources.append(PlacedSource(visual, sample, torch.arange(start, end, device=device)))
    return Prompt(sources)
