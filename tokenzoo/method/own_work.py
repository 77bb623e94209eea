"""A method's own matrix products, counted: its `reduce` or `pick` runs on stand-ins of the workload's shapes.

Stand-ins hold no memory where they are large (see `weightless`), so a 7B model's shapes take seconds. What a method
computes must depend on shapes alone for that; where its work depends on the picture, a recorded run counts it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenzoo.method import ops
from tokenzoo.method.accounting import CacheStep, EncoderStep, EntryStep
from tokenzoo.method.cached_layer import CachedLayer, CacheRead
from tokenzoo.method.decoder_layer import DecoderLayer, Places
from tokenzoo.method.encoder_layer import EncoderLayer
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import ActsAfter
from tokenzoo.method.visual_tokens import Queries, VisualTokens
from tokenzoo.method.weightless import Weightless, stand_in
from tokenzoo.method.workload import Architecture, Source, Workload, guessed_grid

if TYPE_CHECKING:
    from collections.abc import Callable

_counted: dict[Any, int] = {}


def reduce_flops(step: EntryStep, source: Source, workload: Workload) -> int:
    """Matrix products of one `reduce` on one image or video."""
    method, text = step.method, _Text(workload)
    encoder = _Encoder(source, workload.architecture, sum(step.views), step.encoder)
    cuts = tuple((cut.layer, cut.after, cut.left) for cut in step.encoder)
    key = (type(method), str(method), step.early, step.views, step.left, source, workload.architecture, cuts)
    if key in _counted:  # it read no text, so a longer one costs no more
        return _counted[key]
    flops = _count(
        (*key, workload.text_tokens, workload.text_after),
        lambda: method.reduce(_tokens(step, source, workload.architecture, text, encoder)),
    )
    if not text.read:
        _counted[key] = flops
    return flops


def encoder_flops(method: TokenReducer, steps: tuple[EncoderStep, ...], source: Source, workload: Workload) -> int:
    """Matrix products of all of a method's `encoder_pick` on one image or video, which share its memory."""
    places = tuple((step.layer, step.after, step.views, step.left, step.free) for step in steps)
    architecture = workload.architecture

    def run() -> None:
        memory: dict[str, Any] = {}
        for layer, after, views, left, free in places:
            for now, then in dict.fromkeys(zip(views, left, strict=True)):
                if not now or (now == then and not free):
                    continue
                alike = sum(pair == (now, then) for pair in zip(views, left, strict=True))
                head = architecture.encoder_hidden // architecture.encoder_heads
                event = EncoderLayer(
                    index=layer,
                    num_layers=architecture.encoder_layers,
                    after=after,
                    hidden_states=stand_in(alike, now, architecture.encoder_hidden),
                    sizes=torch.ones(alike, now),
                    patches=source.before_projector[views.index(now)],
                    has_cls=architecture.has_cls,
                    projected_keys=lambda shape=(alike, now, head): stand_in(*shape),  # type: ignore[misc]
                    memory=memory,
                    architecture=architecture,
                    kind=source.kind,
                )
                method.encoder_pick(event, then)

    return _count((type(method), str(method), places, source.before_projector, source.kind, architecture), run)


def signals_read(step: EntryStep, source: Source, workload: Workload) -> set[str]:
    """What else than tokens and encoder layers one `reduce` looks at: "text" of the prompt, the encoder's "pooling head"."""
    text, encoder = _Text(workload), _Encoder(source, workload.architecture, sum(step.views), step.encoder)
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
            method.pick(layer_event(layer, before, entered, workload, memory, method.acts_after), after)

    return _count(key, run)


def attention_read(method: TokenReducer, architecture: Architecture) -> set[int]:
    """The decoder layers whose attention a method reads, seen by letting it pick on stand-ins.

    A method that fails on them tells nothing; the host refuses it when it asks.
    """
    read: set[int] = set()
    before = entered = 64
    workload = Workload(architecture, (Source("image", (entered,)),), 16, text_after=8)
    memory: dict[str, Any] = {}
    for layer, count in sorted(method.kept(entered, architecture.layers).items()):
        if before and (count is None or 0 < count < before):
            event = layer_event(layer, before, entered, workload, memory, method.acts_after)
            try:
                with torch.no_grad(), Weightless():
                    method.pick(replace(event, signals=_Watched(event, architecture, read)), count)
            except Exception:
                return read
        before = before if count is None else min(before, count)
    return read


def cache_flops(cut: CacheStep, cached: int, entered: int, workload: Workload) -> int:
    """Matrix products of one `pick_cached` in a layer with `cached` visual tokens, of which other methods left `cut.before`."""
    method, architecture = cut.method, workload.architecture
    ahead, total = workload.text_before, workload.text_tokens + cached
    visual = torch.arange(ahead, ahead + cached)
    key = (type(method), str(method), cut.layer, cut.before, cut.after, cached, entered, architecture, total, ahead)

    def run() -> None:
        event = CachedLayer(
            index=cut.layer,
            num_layers=architecture.layers,
            rows=torch.arange(total),
            visual=visual,
            text=torch.cat([torch.arange(ahead), torch.arange(ahead + cached, total)]),
            entered=entered,
            signals=_Cache(architecture, total, min(method.query_rows(), total), visual[: cut.after]),
        )
        if cut.before < cached:
            event.apply(torch.arange(cut.before), method.name, cut.before)
        method.pick_cached(event, cut.after)

    return _count(key, run)


def read_flops(method: TokenReducer, choices: tuple[CacheStep, ...], tokens: list[int], step: int, workload: Workload) -> int:
    """Matrix products of all of a method's `pick_read` in one decoding step, which share a memory."""
    key = (type(method), str(method), choices, tuple(tokens), step, workload.architecture)

    def run() -> None:
        memory: dict[str, Any] = {}
        weights: dict[int, torch.Tensor] = {}
        for choice in choices:
            event = CacheRead(
                index=choice.layer,
                num_layers=workload.architecture.layers,
                visual=torch.arange(choice.before),
                entered=workload.visual_tokens,
                generated=step,
                signals=_Read(workload.architecture, tokens, choice.before, weights),
                memory=memory,
            )
            method.pick_read(event, choice.after)

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

    def __init__(self, source: Source, architecture: Architecture, tokens: int, cuts: tuple[EncoderStep, ...] = ()) -> None:
        self.source, self.architecture, self.tokens, self.cuts = source, architecture, tokens, cuts
        self.cls, self.head_read = int(architecture.has_cls), False

    def query_key(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = self.source.before_projector
        shape = (len(views), self.cls + max(views, default=0), self.architecture.encoder_hidden)
        return stand_in(*shape), stand_in(*shape)

    def attention(self, layer: int, queries: Queries, early: bool) -> torch.Tensor:
        heads = self.architecture.encoder_heads
        before = [cut.left for cut in self.cuts if cut.layer < layer % self.architecture.encoder_layers]
        rows_of = [self.cls + left for left in before[-1]] if before else self.source.encoder_rows(self.architecture)
        for rows in rows_of:
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


def layer_event(
    index: int, visual: int, entered: int, workload: Workload, memory: dict[str, Any], after: ActsAfter = "layer"
) -> DecoderLayer:
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
        signals=_Layer(architecture, total, index),
        after=after,
        text_behind=workload.text_tokens - ahead,
        memory=memory,
    )


class _Layer:
    """The decoder's signals by shape alone."""

    scaling = 1.0

    def __init__(self, architecture: Architecture, tokens: int, index: int) -> None:
        self.architecture, self.tokens = architecture.of_layer(index), tokens
        self.following = architecture.of_layer(index + 1)

    def _projected(self, states: torch.Tensor, heads: int, gated: bool = False) -> torch.Tensor:
        width = self.following.head_dim
        made = torch.mm(states, stand_in(self.following.hidden, (1 + gated) * heads * width))
        return made.unflatten(-1, (-1, width))[:, :heads].transpose(0, 1)

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        return stand_in(self.architecture.heads, len(rows), self.architecture.head_dim)

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        return stand_in(self.architecture.kv_heads, self.tokens, self.architecture.head_dim)

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._projected(states, self.following.heads, self.following.gated_attention)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return self._projected(states, self.following.kv_heads)

    def embeddings(self, rows: torch.Tensor | None) -> torch.Tensor:
        return stand_in(self.tokens, self.architecture.hidden)

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def positions(self, rows: torch.Tensor | None) -> torch.Tensor:
        return torch.arange(self.tokens)

    def places(self) -> Places:
        """One picture in one row."""
        tokens = torch.arange(self.tokens)
        return Places(torch.zeros_like(tokens), torch.zeros_like(tokens), tokens, ("image",))

    def visible(self, rows: torch.Tensor, columns: torch.Tensor | None, following: bool) -> None:
        return None

    def frequencies(self) -> torch.Tensor:
        return torch.ones(self.architecture.head_dim // 2)


class _Watched(_Layer):
    """Notes in `read` whose attention is asked for."""

    def __init__(self, event: DecoderLayer, architecture: Architecture, read: set[int]) -> None:
        super().__init__(architecture, len(event.hidden_states), event.index)
        self.index, self.read = event.index, read

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        self.read.add(self.index)
        return super().query(rows)

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        self.read.add(self.index)
        return super().key(rows)

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self.read.add(self.index + 1)
        return super().next_query(states, rows)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        self.read.add(self.index + 1)
        return super().next_key(states, rows)


class _Cache:
    """A layer's KV cache by shape alone."""

    scaling = 1.0

    def __init__(self, architecture: Architecture, tokens: int, rows: int, left: torch.Tensor) -> None:
        self.architecture, self.tokens, self.rows, self.left = architecture, tokens, rows, left

    def key(self) -> torch.Tensor:
        return stand_in(self.architecture.kv_heads, self.tokens, self.architecture.head_dim)

    def value(self) -> torch.Tensor:
        return self.key()

    def query(self) -> torch.Tensor:
        return stand_in(self.architecture.heads, self.rows, self.architecture.head_dim)

    def alive(self, layer: int) -> torch.Tensor:
        return self.left


class _Read:
    """A decoding step by shape alone; each layer's attention is computed once, as in the host."""

    def __init__(self, architecture: Architecture, tokens: list[int], visual: int, weights: dict[int, torch.Tensor]) -> None:
        self.architecture, self.tokens, self.visual, self.weights = architecture, tokens, visual, weights

    def attention(self, layer: int, index: int) -> torch.Tensor:
        if layer not in self.weights:
            heads, width, count = self.architecture.heads, self.architecture.head_dim, self.tokens[layer]
            query, key = stand_in(heads, 1, width), stand_in(self.architecture.kv_heads, count, width)
            self.weights[layer] = ops.attention_weights(query, key, torch.tensor([count - 1]), 1.0)[:, 0]
        return stand_in(self.architecture.heads, self.visual)
