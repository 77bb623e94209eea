"""A whole model in numbers: decoder, vision tower, projector, and how many tokens a picture becomes by default."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tokenzoo.cost.records import MOST_VIEWS, Count, Counts, Depth, Record, Size, read_record
from tokenzoo.errors import UserError, unknown
from tokenzoo.method.workload import Architecture, LinearAttention, Source, Workload
from tokenzoo.zoo.plugins import load_zoo

LISTING = "tokenzoo cost --list-architectures"
#: The most visual tokens, and the most text tokens, that a prompt is priced with.
MOST_TOKENS = 10**7


class LinearSizes(Record):
    """The linear-attention layers of a decoder: see `tokenzoo.method.workload.LinearAttention`."""

    layers: Counts
    key_heads: Size
    value_heads: Size
    key_dim: Size
    value_dim: Size
    kernel: Size


class DecoderSizes(Record):
    """The sizes of a decoder; `head_dim` 0 is hidden / heads. `experts` and what follows: see `Architecture`."""

    hidden: Size
    layers: Depth
    heads: Size
    kv_heads: Size
    intermediate: Size
    vocab: Size
    head_dim: Count = 0
    experts: Count = 0
    active_experts: Count = 0
    expert_intermediate: Count = 0
    dense_layers: Counts = ()
    window: Count = 0
    full_attention_layers: Counts = ()
    linear: LinearSizes | None = None
    gated_attention: bool = False
    beside_experts: Count = 0
    beside_gated: bool = False
    shared_kv_layers: Count = 0
    full_head_dim: Count = 0
    full_kv_heads: Count = 0
    key_is_value: bool = False
    wide_shared_mlp: bool = False
    per_layer_width: Count = 0

    @model_validator(mode="after")
    def _groups(self) -> DecoderSizes:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly")
        if self.experts and not (1 <= self.active_experts <= self.experts and self.expert_intermediate):
            raise ValueError(f"{self.experts} experts need active_experts (1 to {self.experts}) and expert_intermediate")
        if self.shared_kv_layers >= self.layers:
            raise ValueError(f"{self.shared_kv_layers} of {self.layers} layers cannot share the keys of layers before them")
        return self


class VisionTower(Record):
    """A vision encoder. `kind` is "vit" (fixed pictures of `image_size`), or a Qwen-VL's or Gemma 4's (any grid).

    `merge` x `merge` patches become one token; after `deepstack` of the layers all tokens are projected besides. `window` is
    the side of an attention window in pixels, for all layers but `full_attention_layers` (0: every layer attends to the whole
    view). The output of layer `feature_layer` (from 0; negative: from the last) goes to the projector. `pooling_head`: SigLIP's
    attention-pooling head runs besides, whose output a LLaVA leaves.
    """

    kind: Literal["vit", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma4"]
    hidden: Size
    layers: Depth
    heads: Size
    intermediate: Size
    patch: Size
    image_size: Count = 0
    class_token: bool = False
    pooling_head: bool = False
    gated: bool = False
    temporal_patch: Size = 1
    merge: Size = 1
    deepstack: Count = 0
    window: Count = 0
    full_attention_layers: Counts = ()
    channels: Size = 3
    feature_layer: Annotated[int, Field(strict=True, ge=-(10**4), lt=10**4)] = -1

    @model_validator(mode="after")
    def _holds_a_patch(self) -> VisionTower:
        if self.kind == "vit" and self.image_size < self.patch:
            raise ValueError(f"pictures of {self.image_size} pixels (image_size) hold no patch of {self.patch}")
        if self.window and self.window < self.merge * self.patch:
            raise ValueError(f"a window of {self.window} pixels holds no token of {self.merge * self.patch}")
        return self


class Projector(Record):
    """Two linear layers from the encoder (for Qwen-VL from merge x merge patches at once) to the decoder; one with hidden 0,
    three where the first has a gate beside it (`gated`)."""

    inputs: Size
    hidden: Count
    outputs: Size
    gated: bool = False


class Resampler(Record):
    """What makes `latents` tokens of all patches of a view, behind the projector: layers in which they attend to the patches
    and to each other (Idefics2). No token can be dropped before it."""

    latents: Size
    layers: Depth
    heads: Size
    kv_heads: Size
    head_dim: Size


class Picture(Record):
    """What one image becomes by default: its views as in `tokenzoo.method.workload.Source`."""

    view_tokens: Counts
    structural: Count = 0
    encoder_views: Counts = ()


class Frames(Record):
    """What a video becomes by default: `tokens` per view (a view is `frames_per_view` frames), once `structural`.

    `through`: structural tokens of each view that come from the encoder (CLS). `merged`: patches that become one token before
    the projector, beyond the tower's `merge` (0: none). `apart`: each view is a picture of its own to a method.
    """

    tokens: Count
    encoder_tokens: Count = 0
    structural: Count = 0
    frames_per_view: Size = 1
    through: Count = 0
    merged: Count = 0
    apart: bool = False


class ModelArchitecture(Record):
    """A model's shape. `decoder` is what methods see of it; `vision` and `projector` are None where unknown.

    `model_type`: that of the Hugging Face class, where the shape alone does not tell it.
    """

    name: str
    model_type: str = ""
    sizes: Annotated[DecoderSizes, Field(alias="decoder")]
    vision: VisionTower | None = None
    projector: Projector | None = None
    resampler: Resampler | None = None
    image: Picture | None = None
    video: Frames | None = None
    skip_mlp_add: bool = False
    source: str = ""

    @cached_property
    def decoder(self) -> Architecture:
        """The dimensions of decoder and tower that methods' token counts are multiplied with."""
        tower: dict[str, Any] = {}
        if self.vision is not None:
            tower = {
                "vision_hidden": self.projector.inputs if self.projector else self.vision.hidden,
                "encoder_hidden": self.vision.hidden,
                "encoder_layers": self.vision.layers,
                "encoder_heads": self.vision.heads,
                "encoder_merge": self.vision.merge**2,
                "feature_layer": self.vision.feature_layer % self.vision.layers,
                "has_cls": self.vision.class_token,
            }
        sizes = dict(self.sizes)
        linear = None if self.sizes.linear is None else LinearAttention(**dict(self.sizes.linear))
        return Architecture(self.name, **{**sizes, "linear": linear}, **tower)

    def image_workload(self, images: int = 1, tokens: int | None = None, text_tokens: int = 40) -> Workload:
        """A prompt of `images` images (of `tokens` visual tokens each, instead of the model's default)."""
        in_range(images, "images", 1, MOST_VIEWS)
        in_range(text_tokens, "text tokens", 0, MOST_TOKENS)
        if tokens is not None:
            picture = Picture(view_tokens=(in_range(tokens, "visual tokens", 0, MOST_TOKENS),))
        elif self.image is not None:
            picture = self.image
        else:
            raise UserError(f"'{self.name}' has no default image size. Give the visual tokens with '--tokens N'.")
        source = Source("image", picture.view_tokens, picture.structural, picture.encoder_views)
        in_range(images * source.tokens, "the visual tokens of all images", 0, MOST_TOKENS)
        return Workload(self.decoder, (source,) * images, text_tokens)

    def video_workload(self, frames: int, tokens: int | None = None, text_tokens: int = 100) -> Workload:
        """A prompt of one video of `frames` frames (of `tokens` visual tokens per view, instead of the default)."""
        in_range(frames, "frames", 1, MOST_VIEWS)
        in_range(text_tokens, "text tokens", 0, MOST_TOKENS)
        if tokens is not None:
            in_range(tokens, "visual tokens", 0, MOST_TOKENS)
            video = self.video.model_copy(update={"tokens": tokens}) if self.video else Frames(tokens=tokens)
        elif self.video is not None:
            video = self.video
        else:
            raise UserError(f"'{self.name}' has no default for videos. Give the tokens of a frame with '--tokens N'.")
        views = -(-frames // video.frames_per_view)
        in_range(views * video.tokens, "the visual tokens of all frames", 0, MOST_TOKENS)
        if video.apart:
            return Workload(self.decoder, (Source("image", (video.tokens,)),) * views, text_tokens)
        encoder, through = (video.encoder_tokens,) * views if video.encoder_tokens else (), views * video.through
        source = Source(
            "video", (video.tokens,) * views, video.structural + through, encoder, through=through, merged=video.merged
        )
        return Workload(self.decoder, (source,), text_tokens)


def load_architecture(name: str) -> ModelArchitecture:
    """Return the architecture of that name in the registries; raises UserError with a suggestion where there is none."""
    entries = load_zoo().registry.architectures
    if name not in entries:
        raise unknown("architecture", name, entries, LISTING)
    return from_entry(name, entries[name])


def from_entry(name: str, entry: dict[str, Any]) -> ModelArchitecture:
    """Build an architecture from a registry entry; raises UserError for a missing, unknown or impossible value."""
    return read_record(ModelArchitecture, {"name": name, **entry}, f"architecture '{name}'", LISTING)


def in_range(value: Any, what: str, least: int, most: int) -> int:
    """Return `value` if it is a whole number from `least` to `most`, else raise UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{what} must be a whole number from {least} to {most:,}, not {value!r}.")
    return value
