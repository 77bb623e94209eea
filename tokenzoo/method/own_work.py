"""A method's own matrix products, counted: its `reduce` or `pick` runs on stand-ins of the workload's shapes.

Stand-ins hold no memory where they are large (see `weightless`), so a 7B model's shapes take seconds. What a method
computes must depend on shapes alone for that; where its work depends on the picture, a recorded run counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenzoo.method import ops
from tokenzoo.method.accounting import EntryStep
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.visual_tokens import Queries, VisualTokens
from tokenzoo.method.weightless import Weightless, stand_in
from tokenzoo.method.workload import Architecture, Source, Workload, guessed_grid

if TYPE_CHECKING:
    from collections.abc import Callable

_counted: dict[Any, int] = {}


def reduce_flops(step: EntryStep, source: Source, workload: Workload) -> int:
    """Matrix products of one `reduce` on one image or video."""
    method, text, encoder = step.method, _Text(workload), _Encoder(source, workload.architecture, sum(step.views))
    key = (type(method), str(method), step.early, step.views, step.left, source, workload.architecture)
    if key in _counted:  # it read no text, so a longer one costs no more
        return _counted[key]
    flops = _count(
        (*key, workload.text_tokens, workload.text_after),
        lambda: method.reduce(_tokens(step, source, workload.architecture, text, encoder)),
    )
    if not text.read:
        _counted[key] = flops
    return flops


def signals_read(step: EntryStep, source: Source, workload: Workload) -> set[str]:
    """What else than tokens and encoder layers one `reduce` looks at: "text" of the prompt, the encoder's "pooling head"."""
    text, encoder = _Text(workload), _Encoder(source, workload.architecture, sum(step.views))
    with torch.no_grad(), Weightless():
        step.method.reduce(_tokens(step, source, workload.architecture, text, encoder))
    return {name for name, read in (("text", text.read), ("pooling head", encoder.head_read)) if read}


def pick_flops(method: TokenReducer, entered: int, steps: tuple[tuple[int, int, int], ...], workload: Workload) -> int:
    """Matrix products of all of a method's `pick` on one sample, which share its memory.

    `entered`: visual tokens that entered the LLM; `steps`: of each pick the decoder layer, the visual tokens before it and
    those that remain.
    """
    key = (type(method), str(method), entered, steps, workload.architecture, workload.text_tokens, workload.text_after)

    def run() -> None:
        memory: dict[str, Any] = {}
        for layer, before, after in steps:
            method.pick(layer_event(layer, before, entered, workload, memory), after)

    return _count(key, run)


def _count(key: Any, run: Callable[[], Any]) -> int:
    if key not in _counted:
        with torch.no_grad(), Weightless(), FlopCounterMode(display=False) as mode:
            run()
        _counted[key] = mode.get_total_flops()
    return _counted[key]


def _tokens(step: EntryStep, source: Source, architecture: Architecture, text: _Text, encoder: _Encoder) -> VisualTokens:
    total = sum(step.views)
    whole = source.before_projector if step.early else source.view_tokens
    grids = source.grids if step.views == source.view_tokens and source.grids else tuple(map(guessed_grid, step.views))
    width = architecture.vision_hidden if step.early else architecture.hidden
    return VisualTokens(
        kind=source.kind,
        features=stand_in(total, width),
        view=torch.arange(len(step.views)).repeat_interleave(torch.tensor(step.views, dtype=torch.long)),
        grids=grids,
        early=step.early,
        left=step.left,
        has_cls=architecture.has_cls,
        encoder=encoder,
        text=None if step.early else text,
        anchors=None if step.views == whole else torch.arange(total),
        architecture=architecture,
    )


class _Encoder:
    """The encoder's signals by shape alone. `head_read`: whether a method looked at its pooling head."""

    def __init__(self, source: Source, architecture: Architecture, tokens: int) -> None:
        self.source, self.architecture, self.tokens = source, architecture, tokens
        self.cls, self.head_read = int(architecture.has_cls), False

    def query_key(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = self.source.before_projector
        shape = (len(views), self.cls + max(views, default=0), self.architecture.encoder_hidden)
        return stand_in(*shape), stand_in(*shape)

    def attention(self, layer: int, queries: Queries, early: bool) -> torch.Tensor:
        heads = self.architecture.encoder_heads
        for rows in self.source.encoder_rows(self.architecture):
            states = stand_in(1, heads, rows, self.architecture.encoder_hidden // heads)
            ops.encoder_attention(states, states, 1.0, queries)
        return torch.zeros(heads, self.tokens)

    def keys(self, layer: int, early: bool) -> torch.Tensor:
        return stand_in(self.tokens, self.architecture.encoder_hidden // self.architecture.encoder_heads)

    def features(self, layer: int, early: bool) -> torch.Tensor:
        return stand_in(self.tokens, self.architecture.encoder_hidden)

    def cls_features(self, layer: int) -> torch.Tensor:
        return stand_in(len(self.source.before_projector), self.architecture.encoder_hidden)

    def pooling_head(self, early: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The model runs its head in any case, so reading it costs nothing."""
        self.head_read = True
        views = len(self.source.before_projector)
        return torch.zeros(self.tokens), stand_in(views, self.architecture.encoder_hidden)


class _Text:
    """The sample's text by shape alone. `read`: whether a method looked at it."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.read = workload, False

    @property
    def question(self) -> str:
        self.read = True
        return "What is shown?"

    def _rows(self, count: int) -> torch.Tensor:
        self.read = True
        return stand_in(count, self.workload.architecture.hidden)

    def all(self) -> torch.Tensor:
        return self._rows(self.workload.text_tokens)

    def after(self) -> torch.Tensor:
        return self._rows(self.workload.text_tokens - self.workload.text_before)

    def embed(self, words: list[str]) -> torch.Tensor:
        return self.after()


def layer_event(index: int, visual: int, entered: int, workload: Workload, memory: dict[str, Any]) -> DecoderLayer:
    """The text ahead of the last visual token, the visual tokens, the text behind them."""
    architecture, ahead, total = workload.architecture, workload.text_before, workload.text_tokens + visual
    return DecoderLayer(
        index=index,
        num_layers=architecture.layers,
        hidden_states=stand_in(total, architecture.hidden),
        inputs=stand_in(total, architecture.hidden),
        visual=torch.arange(ahead, ahead + visual),
        text=torch.cat([torch.arange(ahead), torch.arange(ahead + visual, total)]),
        entered=entered,
        signals=_Layer(architecture, total),
        text_behind=workload.text_tokens - ahead,
        memory=memory,
    )


class _Layer:
    """The decoder's signals by shape alone."""

    scaling = 1.0

    def __init__(self, architecture: Architecture, tokens: int) -> None:
        self.architecture, self.tokens = architecture, tokens

    def _projected(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        width = self.architecture.head_dim
        made = torch.mm(states, stand_in(self.architecture.hidden, heads * width))
        return made.unflatten(-1, (heads, width)).transpose(0, 1)

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        return stand_in(self.architecture.heads, len(rows), self.architecture.head_dim)

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        return stand_in(self.architecture.kv_heads, self.tokens, self.architecture.head_dim)

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._projected(states, self.architecture.heads)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return self._projected(states, self.architecture.kv_heads)

    def embeddings(self, rows: torch.Tensor | None) -> torch.Tensor:
        return stand_in(self.tokens, self.architecture.hidden)

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def positions(self, rows: torch.Tensor | None) -> torch.Tensor:
        return torch.arange(self.tokens)

    def visible(self, rows: torch.Tensor, columns: torch.Tensor | None, following: bool) -> None:
        return None

    def frequencies(self) -> torch.Tensor:
        return torch.ones(self.architecture.head_dim // 2)
