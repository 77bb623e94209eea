"""What a method sees before the LLM: the visual tokens of one image or video of one sample, and what the model knows of them.

What costs something is a method and is computed when asked for, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tokenzoo.lazy import torch
from tokenzoo.method.reduction import Reduction
from tokenzoo.method.validation import Checks, InvalidReductionError, check_count, check_reduction
from tokenzoo.method.workload import Architecture

if TYPE_CHECKING:
    from torch import Tensor

#: Whose attention: the CLS token's alone, or all queries' mean (the column mean), CLS included where there is one.
Queries = Literal["cls", "all"]


class EncoderSignals(Protocol):
    """What the vision encoder knows of one image or video; the host and the stand-ins implement it.

    Everything is in the order of the unreduced tokens: of the projector's input before the projector, of the LLM's
    input (tiles put together, frames pooled as the model pools its features) afterwards.
    """

    def query_key(self, layer: int) -> tuple[Tensor, Tensor]: ...
    def attention(self, layer: int, queries: Queries, early: bool) -> Tensor: ...
    def keys(self, layer: int, early: bool) -> Tensor: ...
    def features(self, layer: int, early: bool) -> Tensor: ...
    def cls_features(self, layer: int) -> Tensor: ...
    def pooling_head(self, early: bool) -> tuple[Tensor, Tensor]: ...


class TextSignals(Protocol):
    """The text of the sample, as embeddings; only before the LLM."""

    @property
    def question(self) -> str | None: ...
    def all(self) -> Tensor: ...
    def after(self) -> Tensor: ...
    def embed(self, words: list[str]) -> Tensor: ...


@dataclass
class VisualTokens:
    """The visual tokens of one image or video, before the projector (`early`) or before the LLM.

    `features` [tokens, width]: encoder features before the projector (for Qwen-VL one merge unit's patches one after
    another), LLM embeddings afterwards. `view` [tokens] tells the view (frame, or base view and tiles) of each token,
    in ascending order; `grids` the (height, width) of each view. `left` is what the method declared for this source:
    tokens of each view or of all together as one number, None where the picture decides; `count` is their sum.

    `architecture`: the model's dimensions. `tiles`: (rows, columns) of the tiles behind the base view of an anyres image,
    before the projector; None elsewhere.

    Structural tokens (newlines) are not among the tokens: the host keeps those and they are in no count of `left`.
    `memory` is this source's own; `DecoderLayer.source_memories` shows it inside the LLM.
    """

    kind: str
    features: Tensor
    view: Tensor
    grids: tuple[tuple[int, int], ...]
    memory: dict[str, Any] = field(default_factory=dict)
    early: bool = False
    left: tuple[int, ...] | None = None
    has_cls: bool = False
    encoder: EncoderSignals | None = None
    text: TextSignals | None = None
    anchors: Tensor | None = None
    assignment: Tensor | None = None
    #: For each method that acted, the anchors it returned: where positions came from.
    history: list[Tensor | None] = field(default_factory=list)
    checks: Checks = field(default_factory=Checks)
    #: Whether `anchors` count the encoder's tokens: so they do once a source was reduced before the projector.
    encoder_order: bool = False
    #: Tokens of each view, where they are known without looking.
    counts: list[int] | None = None
    architecture: Architecture | None = None
    tiles: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.encoder_order = self.encoder_order or self.early

    @property
    def count(self) -> int | None:
        """How many tokens are to be left in all; None where the picture decides."""
        return None if self.left is None else sum(self.left)

    def views(self) -> list[Tensor]:
        """The indices of each view's tokens, one tensor per view (empty ones included)."""
        return list(self.view.argsort(stable=True).split(self.view_counts()))

    def view_counts(self) -> list[int]:
        """How many tokens each view has now."""
        if self.counts is not None:
            return self.counts
        if self.anchors is None:
            return [height * width for height, width in self.grids]
        return torch.bincount(self.view, minlength=len(self.grids)).tolist()

    def reading_place(self, index: Tensor) -> Tensor:
        """Where tokens stand when read row by row, view after view; an anyres image's tiles as one picture behind its base."""
        if self.tiles is None:
            return index
        (height, width), columns = self.grids[-1], self.tiles[1]
        tile = self.view[index] - 1
        cell = (index if self.anchors is None else self.anchors[index]) % (height * width)
        row, column = tile // columns * height + cell // width, tile % columns * width + cell % width
        return torch.where(tile < 0, cell, height * width + row * columns * width + column)

    def in_reading_order(self, kept: Tensor) -> Tensor:
        """Kept indices sorted by `reading_place`."""
        return kept[self.reading_place(kept).argsort()]

    # --- the encoder --------------------------------------------------------------------------------------------

    def encoder_query_key(self, layer: int) -> tuple[Tensor, Tensor]:
        """The query and key projections of an encoder layer, each [views, (1 +) tokens of a view, width].

        Heads one after another in the width; the first row is the CLS token where `has_cls`. Before any scaling and
        rotary embedding, biases included. Of the unreduced views, whatever was dropped since.
        """
        query, key = self._encoder().query_key(layer)
        return query.to(self.features.device), key.to(self.features.device)

    def encoder_attention(self, layer: int, queries: Queries = "cls") -> Tensor:
        """Attention of an encoder layer on each token, [heads, tokens], softmaxed, float32.

        `queries`: the CLS token's row, or "all", the mean over all queries (the column mean; CLS is a query too where
        there is one, and never a column). Equal to the stock model's `attentions[layer]`. Where several patches become
        one token it is their mean.
        """
        return self._now(self._encoder().attention(layer, queries, self.encoder_order), 1)

    def encoder_saliency(self) -> Tensor:
        """How much the encoder attends to each token, [heads, tokens], softmaxed, float32.

        The CLS token's row in the layer whose output goes to the projector; without CLS the mean over all queries in the
        last layer. Name `architecture.saliency_layer` in encoder_layers().
        """
        assert self.architecture is not None
        return self.encoder_attention(self.architecture.saliency_layer, "cls" if self.has_cls else "all")

    def encoder_keys(self, layer: int) -> Tensor:
        """Key projections of an encoder layer, mean over heads: [tokens, head width]; not scaled, before any rotary embedding."""
        return self._now(self._encoder().keys(layer, self.encoder_order), 0)

    def encoder_features(self, layer: int) -> Tensor:
        """Output of an encoder layer, [tokens, encoder width]: `hidden_states[layer + 1]` without CLS."""
        return self._now(self._encoder().features(layer, self.encoder_order), 0)

    def cls_features(self, layer: int) -> Tensor:
        """Output of an encoder layer at the CLS token of each view, [views, encoder width]."""
        return self._encoder().cls_features(layer).to(self.features.device)

    def pooling_head(self) -> tuple[Tensor, Tensor]:
        """SigLIP's pooling head on the last layer: its attention [tokens], mean over heads, and its vector [views, width].

        Raises UnsupportedError where the encoder has no such head.
        """
        attention, vectors = self._encoder().pooling_head(self.encoder_order)
        return self._now(attention, 0), vectors.to(self.features.device)

    def _encoder(self) -> EncoderSignals:
        if self.encoder is None:
            raise RuntimeError("No encoder layer was recorded: name those that reduce() reads in encoder_layers().")
        return self.encoder

    def _now(self, values: Tensor, dimension: int) -> Tensor:
        """Values of the unreduced tokens as values of the tokens that are there."""
        values = values.to(self.features.device)  # the encoder may lie on another device than the LLM
        return values if self.anchors is None else values.index_select(dimension, self.anchors)

    # --- the text -----------------------------------------------------------------------------------------------

    def text_embeddings(self) -> Tensor:
        """The embeddings [text tokens, hidden] of all the sample's text; only before the LLM."""
        return self._text().all()

    def text_after(self) -> Tensor:
        """The embeddings [text tokens, hidden] of the text behind the last visual token: question and assistant prefix."""
        return self._text().after()

    @property
    def question(self) -> str | None:
        """The question's own words, where whoever called `tokenzoo.apply` passed them."""
        return self._text().question

    def embed_words(self, words: list[str]) -> Tensor:
        """The LLM's input embeddings [sub-tokens, hidden] of words, a first BOS left out; needs `apply(..., tokenizer=)`."""
        return self._text().embed(words)

    def _text(self) -> TextSignals:
        if self.text is None:
            raise RuntimeError("The text is known before the LLM only, not before the projector: leave early() at False.")
        return self.text

    # --- applying a reduction -----------------------------------------------------------------------------------

    def apply(self, result: Tensor | Reduction, method: str) -> None:
        """Apply what a method returned: kept indices [kept] in their new order, or a Reduction."""
        where = "before the LLM"
        anchors = check_reduction(result, self.features, method, where, unique_anchors=False, checks=self.checks)
        features, assignment = (
            (result.features, result.assignment) if isinstance(result, Reduction) else (self.features[anchors], None)
        )
        check_count(len(anchors), self.count, method, where)
        if assignment is None:
            assignment = torch.full((len(self.features),), -1, device=features.device)
            assignment[anchors] = torch.arange(len(anchors), device=features.device)
        self.assignment = assignment if self.assignment is None else _follow(self.assignment, assignment)
        self.anchors = anchors if self.anchors is None else self.anchors[anchors]
        self.features, self.view = features, self.view[anchors]
        self.history.append(anchors)
        self._count_views(method, where)

    def _count_views(self, method: str, where: str) -> None:
        """A count for each view is a promise for each; counts for all together leave it open how many each one has."""
        self.counts = None
        if self.left is None or len(self.left) != len(self.grids):
            return
        found = (self.view == torch.arange(len(self.grids), device=self.view.device)[:, None]).sum(1)
        promised, self.counts = self.left, list(self.left)

        def explain() -> None:
            raise InvalidReductionError(
                f"Method '{method}' ({where}): it declared {list(promised)} tokens of its views and returned {found.tolist()}."
            )

        self.checks.expect_not((found != torch.tensor(promised, device=found.device)).any(), explain)


def _follow(first: Tensor, second: Tensor) -> Tensor:
    """Compose two assignments; a dropped token (-1) stays dropped."""
    return torch.where(first >= 0, second[first.clamp(min=0)], first)


Reduce = Callable[[VisualTokens], None]
