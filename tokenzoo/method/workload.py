"""What a forward pass works on, in numbers alone: enough to price a method without a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tokenzoo.method.reduction import HALVES, ActsAfter


@dataclass(frozen=True)
class LinearAttention:
    """The decoder layers that keep a state in place of keys and values (Qwen3.5's gated DeltaNet), and their dimensions.

    `key_dim` and `value_dim` are those of one head; `kernel` rows are mixed by a convolution before the recurrence.
    """

    layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def channels(self) -> int:
        """Of q, k and v together, which go through the convolution."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a decoder and its vision tower that token counts are multiplied with.

    `head_dim` is the width of one attention head; `vision_hidden` the width of the features before the projector
    (for Qwen2-VL of one merge unit, four patches concatenated); `encoder_hidden` that of one patch, and
    `encoder_layers` and `encoder_heads` count the encoder's layers and heads; `feature_layer` is the encoder layer whose
    output goes to the projector, `encoder_merge` how many patches become one token there; `pooling_head` tells whether the
    encoder runs SigLIP's attention-pooling head. The vision fields are 0 where only the decoder is known.

    A mixture of experts has `experts` in every layer but the `dense_layers`, `active_experts` of them for each token, each
    `expert_intermediate` wide. With a `window`, layers other than `full_attention_layers` keep no more than its last rows in
    their KV cache. The `linear` layers keep a state instead. The last `shared_kv_layers` layers make no keys and values:
    they read those of the last layer before them of their type. `of_layer` tells what one layer is.

    What only prices need: with `gated_attention` the query projection makes a gate of the same width besides;
    `beside_experts` is the width of an MLP that every token passes beside its experts, `beside_gated` whether that has a gate
    of one number. In Gemma 4 the full-attention layers have heads of `full_head_dim` and `full_kv_heads` of keys, which are
    the values too where `key_is_value`; layers that share keys have an MLP twice as wide where `wide_shared_mlp`; each layer
    is given `per_layer_width` numbers for each token.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int = 0
    vision_hidden: int = 0
    encoder_hidden: int = 0
    encoder_layers: int = 0
    encoder_heads: int = 0
    encoder_merge: int = 1
    feature_layer: int = 0
    has_cls: bool = False
    pooling_head: bool = False
    experts: int = 0
    active_experts: int = 0
    expert_intermediate: int = 0
    dense_layers: tuple[int, ...] = ()
    window: int = 0
    full_attention_layers: tuple[int, ...] = ()
    linear: LinearAttention | None = None
    shared_kv_layers: int = 0
    gated_attention: bool = False
    beside_experts: int = 0
    beside_gated: bool = False
    full_head_dim: int = 0
    full_kv_heads: int = 0
    key_is_value: bool = False
    wide_shared_mlp: bool = False
    per_layer_width: int = 0

    @property
    def uniform(self) -> bool:
        """Whether q and k are alike in all layers, and nothing but q comes out of the query projection."""
        return self.linear is None and not self.gated_attention and not self.full_head_dim

    def has_keys(self, index: int) -> bool:
        """Whether a decoder layer makes keys of its own: only then can a method read its attention."""
        return (self.linear is None or index not in self.linear.layers) and index < self.layers - self.shared_kv_layers

    @property
    def shared_sources(self) -> tuple[int, ...]:
        """The layers whose keys and values later ones read, ascending."""
        if not self.shared_kv_layers:
            return ()
        own = range(self.layers - self.shared_kv_layers)
        kinds = {index in self.full_attention_layers: index for index in own}
        return tuple(sorted(kinds.values()))

    def of_layer(self, index: int) -> Architecture:
        """The decoder as layer `index` is: what other layers have is 0 or None there; with a mixture of experts, `intermediate`
        is that of the active ones together, and of the MLP beside them."""
        changes: dict[str, Any] = {}
        shared = index >= self.layers - self.shared_kv_layers
        if index in self.full_attention_layers:
            changes = {"window": 0, "head_dim": self.full_head_dim or self.head_dim}
            changes["kv_heads"] = self.full_kv_heads or self.kv_heads
        else:
            changes["key_is_value"] = False
        if self.linear is not None and index not in self.linear.layers:
            changes["linear"] = None
        if self.shared_kv_layers and not shared:
            changes["shared_kv_layers"] = 0
        if shared and self.wide_shared_mlp:
            changes["intermediate"] = 2 * self.intermediate
        if self.experts and index in self.dense_layers:
            changes["experts"] = 0
        elif self.experts:
            changes["intermediate"] = self.active_experts * self.expert_intermediate + self.beside_experts
        return replace(self, **changes) if changes else self

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)

    @property
    def saliency_layer(self) -> int:
        """The encoder layer by whose attention methods judge tokens (see `VisualTokens.encoder_saliency`)."""
        return self.feature_layer if self.has_cls else self.encoder_layers - 1


def guessed_grid(tokens: int) -> tuple[int, int]:
    """The (height, width) of a view of which only the number of tokens is known: a square where it can be, else one row."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)


@dataclass(frozen=True)
class Source:
    """One image or one video of a prompt.

    A view is what a method treats as one picture: a video frame, an image, or for anyres images the base view and
    the big grid. `view_tokens` are the tokens of each view as they enter the LLM, without structural tokens
    (newlines), of which there are `structural`. `encoder_views` are the tokens of each view before the projector
    (frames before pooling; base and every tile), without CLS; empty means the same as `view_tokens`. `grids` are the
    (height, width) of each view as it enters the LLM, where they are known. `through`: how many of the structural tokens
    come from the encoder (CLS tokens) and pass the projector; they are always kept.
    `merged`: how many patches become one token before the projector, where that is not `encoder_merge` (0: it is).
    """

    kind: Literal["image", "video"]
    view_tokens: tuple[int, ...]
    structural: int = 0
    encoder_views: tuple[int, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()
    through: int = 0
    merged: int = 0

    @property
    def tokens(self) -> int:
        """Visual tokens of this source entering an unreduced LLM, structural ones included."""
        return sum(self.view_tokens) + self.structural

    @property
    def before_projector(self) -> tuple[int, ...]:
        return self.encoder_views or self.view_tokens

    @property
    def pooled(self) -> bool:
        """Whether the model pools a video's frames between projector and LLM."""
        return self.kind == "video" and self.before_projector != self.view_tokens

    def encoder_rows(self, architecture: Architecture) -> list[int]:
        """Rows of each view inside the encoder: its patches, and CLS where there is one."""
        patches = self.merged or architecture.encoder_merge
        return [architecture.has_cls + patches * tokens for tokens in self.before_projector]


class EncoderCut(NamedTuple):
    """How many patches of each view are left after a half of an encoder layer: its attention, or the whole layer."""

    layer: int
    after: ActsAfter
    left: int


def patches_behind(cuts: tuple[EncoderCut, ...], patches: int, layer: int, after: ActsAfter = "layer") -> int:
    """How many of a view's `patches` are left after a half of a layer; after layer -1 all are."""
    present = patches
    for cut in cuts:
        if (cut.layer, HALVES.index(cut.after)) <= (layer, HALVES.index(after)):
            present = min(present, cut.left)
    return present


Place = Literal["attention", "layer", "cache", "read"]


class Choice(NamedTuple):
    """A method, told by its number from 0, was asked after a half of decoder layer `layer`, or in its KV cache, chose itself how
    many visual tokens stay, and `left` so many."""

    number: int
    layer: int
    where: Place
    left: int


@dataclass(frozen=True)
class RecordedSource:
    """What a recorded run made of one image or video before the LLM.

    `steps`: for each method that acts before the LLM, in the order in which they ran, the tokens of each view that it left.
    `encoder`: for each half of an encoder layer after which a method was asked, in order, the patches of each view left.
    """

    steps: tuple[tuple[int, ...], ...] = ()
    encoder: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What a picture decided in a recorded run.

    `choices`: how many tokens each method left wherever it chose the number itself inside the LLM or in a KV cache. Of places
    that no choice is known of, these tell: `visual`, the visual tokens entering each decoder layer (those behind the last one
    have as many); `mlp`, those that each layer's MLP saw, where it is not the same; `cached` and `read`, (layer, visual tokens)
    of each layer whose KV cache was cut after the prompt, and of each that reads a part of it in a decoding step. `flops`: the
    methods' own matrix products, where they were counted while they ran.
    """

    sources: tuple[RecordedSource, ...]
    visual: tuple[int, ...]
    flops: int | None = None
    mlp: tuple[int, ...] = ()
    cached: tuple[tuple[int, int], ...] = ()
    read: tuple[tuple[int, int], ...] = ()
    choices: tuple[Choice, ...] = ()

    def left(self, number: int, layer: int, where: Place, present: int) -> int:
        """How many of the `present` visual tokens method `number` left at a place: by its own choice where that is known, else as
        many as were left there in the end. After layer -1 is the place before layer 0."""
        for made in self.choices:
            if made[:3] == (number, layer, where):
                return made.left
        if where == "cache" or where == "read":
            return dict(self.cached if where == "cache" else self.read).get(layer, present)
        counts, place = (self.mlp, layer) if where == "attention" and self.mlp and layer >= 0 else (self.visual, layer + 1)
        return counts[min(place, len(counts) - 1)]


@dataclass(frozen=True)
class Workload:
    """One prompt (batch size 1) for a model: its images and videos, its text, the decoder's dimensions.

    `recorded` tells, for a run that was recorded, what the picture decided. `text_after`: how many of the text tokens
    stand behind the last visual one (None: all of them), which some methods read.
    """

    architecture: Architecture
    sources: tuple[Source, ...]
    text_tokens: int
    recorded: Recorded | None = None
    text_after: int | None = None

    @property
    def visual_tokens(self) -> int:
        """Visual tokens entering an unreduced LLM."""
        return sum(source.tokens for source in self.sources)

    @property
    def text_before(self) -> int:
        """Text tokens ahead of the last visual one."""
        return 0 if self.text_after is None else self.text_tokens - self.text_after

    @property
    def projector_tokens(self) -> int:
        """Visual tokens entering an unreduced projector."""
        return sum(sum(source.before_projector) + source.through for source in self.sources)

    @classmethod
    def images(cls, architecture: Architecture, tokens: int, text_tokens: int, images: int = 1) -> Workload:
        """A prompt of `images` images with `tokens` visual tokens each."""
        return cls(architecture, tuple(Source("image", (tokens,)) for _ in range(images)), text_tokens)

    @classmethod
    def video(cls, architecture: Architecture, frames: int, tokens: int, text_tokens: int, encoder_tokens: int = 0) -> Workload:
        """A prompt of one video: `frames` frames of `tokens` tokens (`encoder_tokens` before pooling)."""
        encoder = (encoder_tokens,) * frames if encoder_tokens else ()
        return cls(architecture, (Source("video", (tokens,) * frames, 0, encoder),), text_tokens)
