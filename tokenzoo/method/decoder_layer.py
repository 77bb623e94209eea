"""What a method sees inside the LLM: one sample, without padding, after one decoder layer or after its attention.

What costs something is a method and is computed when asked for, never before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from tokenzoo.lazy import torch
from tokenzoo.method import ops
from tokenzoo.method.reduction import ActsAfter, PositionPolicy, Reduction
from tokenzoo.method.validation import Checks, check_count, check_reduction
from tokenzoo.method.workload import Choice

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Which picture each token belongs to, and where it stands there; -1 for text, and in the pictures for structural tokens.

    `source` is the number of its image or video in the sample, `view` that of its view (frame) there, `patch` its index in
    the view. `kinds`: "image" or "video" for each source.
    """

    source: Tensor
    view: Tensor
    patch: Tensor
    kinds: tuple[str, ...]

    def of(self, rows: Tensor) -> Places:
        """The same of some tokens alone."""
        return replace(self, source=self.source[rows], view=self.view[rows], patch=self.patch[rows])

    def to(self, device: torch.device) -> Places:
        """The same on `device`."""
        return replace(self, source=self.source.to(device), view=self.view.to(device), patch=self.patch.to(device))

    def look_up(self, number: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are patches of source `number`, bool [tokens], and what a table [views, patches] of it has where they
        stand [tokens]; at other tokens it means nothing."""
        table = table.to(self.source.device)
        found = table[self.view.clamp(0, len(table) - 1), self.patch.clamp(0, table.shape[1] - 1)]
        return (self.source == number) & (self.patch >= 0), found


class LayerSignals(Protocol):
    """What the decoder knows; the host and the stand-ins implement it. `rows` are indices into the layer's rows."""

    scaling: float

    def query(self, rows: Tensor) -> Tensor: ...
    def key(self, rows: Tensor | None) -> Tensor: ...
    def next_query(self, states: Tensor, rows: Tensor) -> Tensor: ...
    def next_key(self, states: Tensor, rows: Tensor | None) -> Tensor: ...
    def embeddings(self, rows: Tensor | None) -> Tensor: ...
    def final_norm(self, states: Tensor) -> Tensor: ...
    def positions(self, rows: Tensor | None) -> Tensor: ...
    def frequencies(self) -> Tensor: ...
    def places(self) -> Places: ...
    def visible(self, rows: Tensor, columns: Tensor | None, following: bool) -> Tensor | None: ...


@dataclass
class DecoderLayer:
    """One sample after decoder layer `index` of `num_layers`, or `after` its "attention" alone.

    `hidden_states` and `inputs` [tokens, hidden] are what the layer returned and got; after its attention, `hidden_states` are
    the residual stream that its MLP is about to work on. Index -1 is the place before layer 0, where both are what entered
    and no layer has queries, keys or attention yet. `visual` and `text` are the indices
    of the visual and of the text tokens among them, ascending. Structural tokens (newlines) count as visual.
    `entered`: how many visual tokens entered the LLM. `memory` lives as long as the sample's prefill, `source_memories`
    are those of `VisualTokens`, one for each image and video.
    """

    index: int
    num_layers: int
    hidden_states: Tensor
    inputs: Tensor
    visual: Tensor
    text: Tensor
    entered: int
    signals: LayerSignals
    memory: dict[str, Any] = field(default_factory=dict)
    source_memories: list[dict[str, Any]] = field(default_factory=list)
    #: Which of the layer's rows are left, in their order; None: all of them. Position ids where they were renumbered.
    kept: Tensor | None = None
    renumbered: Tensor | None = None
    #: How many text tokens stand behind the last visual token of the prompt.
    text_behind: int = 0
    checks: Checks = field(default_factory=Checks)
    after: ActsAfter = "layer"
    #: What the host notes of methods that choose themselves how many tokens stay.
    choices: list[Choice] = field(default_factory=list)

    @property
    def where(self) -> str:
        """This place in words."""
        if self.index < 0:
            return "before layer 0"
        return f"after layer {self.index}" if self.after == "layer" else f"after the attention of layer {self.index}"

    @property
    def text_after(self) -> Tensor:
        """The indices of the text tokens behind the prompt's last visual token: question and assistant prefix."""
        return self.text[len(self.text) - self.text_behind :]

    def rows(self, rows: str | Tensor) -> Tensor:
        """Indices for "last" (the last prompt token), "text" (all text tokens) or an index tensor."""
        if not isinstance(rows, str):
            return rows
        if rows == "last":
            total = len(self.hidden_states)
            return torch.arange(total - 1, total, device=self.hidden_states.device)
        if rows == "text":
            return self.text
        raise ValueError(f"rows must be 'last', 'text' or an index tensor, not {rows!r}.")

    def query(self, rows: str | Tensor) -> Tensor:
        """This layer's queries of some rows after the rotary embedding, [heads, rows, head dim], not scaled."""
        return self.signals.query(self._place(self.rows(rows)))

    def keys(self) -> Tensor:
        """This layer's keys after the rotary embedding, [kv heads, tokens, head dim]."""
        return self.signals.key(self.kept)

    def attention(self, rows: str | Tensor = "last") -> Tensor:
        """Attention weights of this layer, [heads, rows, tokens], float32; costs just these rows. A row sees what it sees in
        the model: what stands before it, in Gemma also the rest of its own image, or no further than a window."""
        rows = self.rows(rows)
        visible = self.signals.visible(self._place(rows), self.kept, False)
        return ops.attention_weights(self.query(rows), self.keys(), rows, self.signals.scaling, visible)

    def strongest_attention(self, rows: str | Tensor) -> Tensor:
        """For each token the largest attention weight of any head, summed over `rows`: [tokens], float32.

        The weights of a block of rows are held at a time, never those of all (FitPrune).
        """
        rows = self.rows(rows)
        query, key = self.query(rows), self.keys()
        total = torch.zeros(key.shape[1], device=key.device)
        block = ops.rows_at_once(len(query), len(total))
        for part, queries in zip(rows.split(block), query.split(block, dim=1), strict=True):
            visible = self.signals.visible(self._place(part), self.kept, False)
            total += ops.attention_weights(queries, key, part, self.signals.scaling, visible).amax(0).sum(0)
        return total

    def next_attention(self, rows: str | Tensor = "last") -> Tensor:
        """Attention weights [heads, rows, tokens] that the NEXT layer's norm, projections and rotary embedding give
        on `hidden_states` (PyramidDrop). Costs that layer's key projection of all tokens and the query of `rows`."""
        rows = self.rows(rows)
        query = self.signals.next_query(self.hidden_states[rows], self._place(rows))
        key = self.signals.next_key(self.hidden_states, self.kept)
        visible = self.signals.visible(self._place(rows), self.kept, True)
        return ops.attention_weights(query, key, rows, self.signals.scaling, visible)

    def importance(self, temperature: float = 0.1, iterations: int = 5) -> Tensor:
        """PageRank of every token [tokens] over this layer's causal attention graph (AIM, section 3.3), in blocks."""
        rows = torch.arange(len(self.hidden_states), device=self.hidden_states.device)
        return ops.pagerank(self.query(rows), self.keys(), self.signals.scaling, temperature, iterations)

    def embeddings(self) -> Tensor:
        """What each token was when it entered the LLM, [tokens, hidden]; for a merged one, the token that it stands for."""
        return self.signals.embeddings(self.kept)

    def final_norm(self, states: Tensor) -> Tensor:
        """The LLM's last norm applied to states [..., hidden] (DART)."""
        return self.signals.final_norm(states)

    def positions(self) -> Tensor:
        """The position id of each token, [tokens], or [3, tokens] with M-RoPE."""
        return self.signals.positions(self.kept) if self.renumbered is None else self.renumbered

    def places(self) -> Places:
        """Which picture each visual token belongs to, and where it stands there: `source`, `view` (a video's frame) and `patch`,
        each [visual], -1 for newlines; `kinds` says of each source whether it is an "image" or a "video"."""
        places = self.signals.places()
        return (places if self.kept is None else places.of(self.kept)).of(self.visual)

    def frequencies(self) -> Tensor:
        """The angle by which the rotary embedding turns each pair of channels per position, [head dim / 2]."""
        return self.signals.frequencies()

    def _place(self, rows: Tensor) -> Tensor:
        """Where rows stand among the layer's rows: a method before this one may have dropped some."""
        return rows if self.kept is None else self.kept[rows]

    # --- applying a reduction -----------------------------------------------------------------------------------

    def apply(self, result: Tensor | Reduction, method: str, count: int | None, positions: PositionPolicy) -> None:
        """Apply what a method returned: kept indices into `visual` [kept], or a Reduction of the visual tokens.

        Kept tokens stay in sequence order, whatever the order returned: the causal mask remains valid then. Appended
        ones go behind their run of visual tokens.
        """
        where = self.where
        anchors = check_reduction(result, self.hidden_states[self.visual], method, where, unique_anchors=True, checks=self.checks)
        appended = result.appended if isinstance(result, Reduction) else 0
        check_count(len(anchors), count, method, where)
        if not isinstance(result, Reduction) and len(anchors) == len(self.visual):
            return  # every token stays
        if isinstance(result, Reduction):
            self.hidden_states = self.hidden_states.index_copy(0, self.visual[anchors], result.features)
        rows, is_visual = self._left(anchors, appended)
        self.kept = self._place(rows)
        if positions == "renumber":
            self.renumbered = torch.arange(len(rows), device=rows.device)
        elif self.renumbered is not None:
            self.renumbered = self.renumbered[rows]
        self.hidden_states, self.inputs = self.hidden_states[rows], self.inputs[rows]
        ascending = is_visual.long().argsort(stable=True)
        self.text, self.visual = ascending[: len(self.text)], ascending[len(self.text) :]

    def _left(self, anchors: Tensor, appended: int) -> tuple[Tensor, Tensor]:
        """The rows that are left, in their new order, and which of them are visual."""
        chosen = self.visual[anchors]
        places = chosen * 2
        if appended:
            ends = torch.cat([self.visual.diff() > 1, self.visual.new_ones(1, dtype=torch.bool)])
            run = torch.cat([ends.new_zeros(1), ends[:-1]]).cumsum(0)
            last = torch.zeros_like(self.visual).scatter_reduce(0, run, self.visual, "amax")
            places[len(places) - appended :] = last[run[anchors[len(anchors) - appended :]]] * 2 + 1
        order = torch.cat([self.text * 2, places]).argsort(stable=True)
        rows = torch.cat([self.text, chosen])[order]
        return rows, order >= len(self.text)
