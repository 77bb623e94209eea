"""What a method sees at a hook point: `VisualTokens` before the LLM, `DecoderLayer` inside it.

Both describe ONE sample without padding, whatever the batch looked like. Quantities that cost something are
methods and are computed when asked for, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenzoo.method import ops
from tokenzoo.method.reducer import Reduction
from tokenzoo.method.validation import check_reduction


@dataclass
class VisualTokens:
    """The visual tokens of one image or video, before the projector or before the LLM.

    `features` [tokens, width]; `view` [tokens] tells the view (frame, or base view and tiles) of each token, in
    ascending order; `grids` the (height, width) of each view. Structural tokens (newlines) are not among them: the
    host keeps those. `memory` is this source's own; it goes on from `before_projector` to `pre_llm`, and
    `DecoderLayer.source_memories` shows it inside the LLM.
    """

    kind: str
    features: torch.Tensor
    view: torch.Tensor
    grids: tuple[tuple[int, int], ...]
    memory: dict[str, Any]
    text_embeddings: Callable[[], torch.Tensor] | None = None
    recorded_layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    encoder_heads: int = 0
    has_cls: bool = False
    anchors: torch.Tensor | None = None
    assignment: torch.Tensor | None = None

    def views(self) -> list[torch.Tensor]:
        """The indices of each view's tokens, one tensor per view (empty ones included)."""
        if self.anchors is None:
            counts = [height * width for height, width in self.grids]
        else:
            counts = torch.bincount(self.view, minlength=len(self.grids)).tolist()
        return list(self.view.argsort(stable=True).split(counts))

    def text(self) -> torch.Tensor:
        """The embeddings [text tokens, hidden] of the sample's text; only before the LLM."""
        if self.text_embeddings is None:
            raise RuntimeError("The text's embeddings exist in pre_llm only, not before the projector.")
        return self.text_embeddings()

    def encoder_query_key(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The query and key projections of encoder layer `layer`, each [views, (1 +) tokens of a view, width].

        Heads are concatenated; the first row is the CLS token where `has_cls`. The layer must be among those that
        the method's `encoder_layers` names. Only before the projector, where nothing was reduced yet.
        """
        if layer not in self.recorded_layers:
            raise RuntimeError(
                f"Encoder layer {layer} was not recorded; name it in encoder_layers() (recorded: "
                f"{sorted(self.recorded_layers) or 'none'})."
            )
        return self.recorded_layers[layer]

    def reduce(self, result: torch.Tensor | Reduction | None, method: str) -> None:
        """Apply what a method returned: kept indices [kept] in their new order, or a Reduction."""
        if result is None:
            return
        check_reduction(result, self.features, method, "before the LLM", unique_anchors=False)
        if isinstance(result, Reduction):
            features, anchors = result.features, result.anchors
            assignment = result.assignment
        else:
            features, anchors, assignment = self.features[result], result, None
        if assignment is None:
            assignment = torch.full((len(self.features),), -1, device=features.device)
            assignment[anchors] = torch.arange(len(anchors), device=features.device)
        self.assignment = assignment if self.assignment is None else _follow(self.assignment, assignment)
        self.anchors = anchors if self.anchors is None else self.anchors[anchors]
        self.features, self.view = features, self.view[anchors]


def _follow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compose two assignments; a dropped token (-1) stays dropped."""
    return torch.where(first >= 0, second[first.clamp(min=0)], first)


@dataclass
class DecoderLayer:
    """One sample after decoder layer `index` of `num_layers`.

    `hidden_states` and `inputs` [tokens, hidden] are what the layer returned and got; `visual` and `text` the indices
    of the visual and of the text tokens among them, ascending; `entered` how many visual tokens entered the LLM.
    `memory` lives as long as the sample's prefill. `query_key` and `next_query_key` are the host's; use the methods.
    """

    index: int
    num_layers: int
    hidden_states: torch.Tensor
    inputs: torch.Tensor
    visual: torch.Tensor
    text: torch.Tensor
    entered: int
    memory: dict[str, Any]
    source_memories: list[dict[str, Any]]
    scaling: float
    query_key: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    next_query_key: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    kept: torch.Tensor | None = None

    def rows(self, rows: str | torch.Tensor) -> torch.Tensor:
        """Indices for "last" (the last prompt token), "text" (all text tokens) or an index tensor."""
        if isinstance(rows, torch.Tensor):
            return rows
        if rows == "last":
            total = len(self.hidden_states)
            return torch.arange(total - 1, total, device=self.hidden_states.device)
        if rows == "text":
            return self.text
        raise ValueError(f"rows must be 'last', 'text' or an index tensor, not {rows!r}.")

    def keys(self) -> torch.Tensor:
        """This layer's keys after the rotary embedding, [kv heads, tokens, head dim]."""
        return self.query_key()[1]

    def attention(self, rows: str | torch.Tensor = "last") -> torch.Tensor:
        """Attention weights of this layer, [heads, rows, tokens], float32, causal; costs just these rows."""
        rows = self.rows(rows)
        query, key = self.query_key()
        return ops.attention_weights(query[:, rows], key, rows, self.scaling)

    def next_attention(self, rows: str | torch.Tensor = "last") -> torch.Tensor:
        """Attention weights [heads, rows, tokens] that the NEXT layer's norm, projections and rotary embedding give
        on `hidden_states` (PyramidDrop). Costs that layer's key projection of all tokens and the query of `rows`."""
        rows = self.rows(rows)
        query, key = self.next_query_key(rows)
        return ops.attention_weights(query, key, rows, self.scaling)

    def importance(self, temperature: float = 0.1, iterations: int = 5) -> torch.Tensor:
        """PageRank of every token [tokens] over this layer's attention graph (AIM, section 3.3), in blocks."""
        query, key = self.query_key()
        return ops.pagerank(query, key, self.scaling, temperature, iterations)

    def keep_best(self, count: int, score: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """What `after_layer` returns to keep the `count` visual tokens of highest `score()` [tokens], ties to the first.

        The score is asked for only where it decides: not where no token or every token stays.
        """
        if count >= len(self.visual):
            return None
        return self.visual[:0] if count <= 0 else ops.top_indices(score()[self.visual], count)

    def reduce(self, result: torch.Tensor | Reduction | None, method: str) -> None:
        """Apply what a method returned: kept indices into `visual`, or a Reduction over the visual tokens.

        Sequence order is kept whatever the order returned: later layers need no causal mask of their own then.
        """
        if result is None:
            return
        check_reduction(result, self.hidden_states[self.visual], method, f"after layer {self.index}", True)
        anchors = result.anchors if isinstance(result, Reduction) else result
        if isinstance(result, Reduction):
            self.hidden_states = self.hidden_states.index_copy(0, self.visual[anchors], result.features)
        visual = self.visual[anchors].sort().values
        rows = torch.cat([self.text, visual]).sort().values
        self.kept = rows if self.kept is None else self.kept[rows]
        self.hidden_states, self.inputs = self.hidden_states[rows], self.inputs[rows]
        self.visual, self.text = torch.searchsorted(rows, visual), torch.searchsorted(rows, self.text)
        self._after_reduction(rows)

    def _after_reduction(self, rows: torch.Tensor) -> None:
        """A second method at the same layer sees only what the first left."""
        query_key, next_query_key = self.query_key, self.next_query_key

        def now() -> tuple[torch.Tensor, torch.Tensor]:
            query, key = query_key()
            return query[:, rows], key[:, rows]

        def later(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            query, key = next_query_key(rows[wanted])
            return query, key[:, rows]

        self.query_key, self.next_query_key = now, later
