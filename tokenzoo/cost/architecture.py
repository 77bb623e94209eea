"""A whole model in numbers: decoder, vision tower, projector, and how many tokens a picture becomes by default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

from tokenzoo.errors import UserError, unknown
from tokenzoo.method.workload import Architecture, Source, Workload
from tokenzoo.zoo.plugins import load_zoo


@dataclass(frozen=True)
class VisionTower:
    """A vision encoder. `kind` is "vit" (fixed pictures of `image_size`), "qwen2-vl" or "qwen2.5-vl" (any grid).

    `merge` x `merge` patches become one token; `window` is the side of an attention window in pixels, for all layers but
    `full_attention_layers` (0: every layer attends to the whole view).
    """

    kind: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch: int
    image_size: int = 0
    class_token: bool = False
    gated: bool = False
    temporal_patch: int = 1
    merge: int = 1
    window: int = 0
    full_attention_layers: tuple[int, ...] = ()
    channels: int = 3


@dataclass(frozen=True)
class Projector:
    """Two linear layers from the encoder (for Qwen-VL from merge x merge patches at once) to the decoder."""

    inputs: int
    hidden: int
    outputs: int


@dataclass(frozen=True)
class Picture:
    """What one image becomes by default: its views as in `tokenzoo.method.workload.Source`."""

    view_tokens: tuple[int, ...]
    structural: int = 0
    encoder_views: tuple[int, ...] = ()


@dataclass(frozen=True)
class Frames:
    """What a video becomes by default: `tokens` per view (a view is `frames_per_view` frames), once `structural`."""

    tokens: int
    encoder_tokens: int = 0
    structural: int = 0
    frames_per_view: int = 1


@dataclass(frozen=True)
class ModelArchitecture:
    """A model's shape. `decoder` is what methods see of it; `vision` and `projector` are None where unknown."""

    name: str
    decoder: Architecture
    vision: VisionTower | None = None
    projector: Projector | None = None
    image: Picture | None = None
    video: Frames | None = None
    skip_mlp_add: bool = False
    source: str = ""

    def image_workload(self, images: int = 1, tokens: int | None = None, text_tokens: int = 40) -> Workload:
        """A prompt of `images` images (of `tokens` visual tokens each, instead of the model's default)."""
        _natural(images, "images", 1)
        _natural(text_tokens, "text tokens", 0)
        if tokens is not None:
            picture = Picture((_natural(tokens, "visual tokens", 0),))
        elif self.image is not None:
            picture = self.image
        else:
            raise UserError(f"'{self.name}' has no default image size. Give the visual tokens with '--tokens N'.")
        source = Source("image", picture.view_tokens, picture.structural, picture.encoder_views)
        return Workload(self.decoder, (source,) * images, text_tokens)

    def video_workload(self, frames: int, tokens: int | None = None, text_tokens: int = 100) -> Workload:
        """A prompt of one video of `frames` frames (of `tokens` visual tokens per view, instead of the default)."""
        _natural(frames, "frames", 1)
        _natural(text_tokens, "text tokens", 0)
        if tokens is not None:
            video = replace(self.video, tokens=_natural(tokens, "visual tokens", 0)) if self.video else Frames(tokens)
        elif self.video is not None:
            video = self.video
        else:
            raise UserError(f"'{self.name}' has no default for videos. Give the tokens of a frame with '--tokens N'.")
        views = -(-frames // video.frames_per_view)
        encoder = (video.encoder_tokens,) * views if video.encoder_tokens else ()
        return Workload(self.decoder, (Source("video", (video.tokens,) * views, video.structural, encoder),), text_tokens)


Section = TypeVar("Section")


def load_architecture(name: str) -> ModelArchitecture:
    """Return the architecture of that name in the registries; raises UserError with a suggestion where there is none."""
    entries = load_zoo().registry.architectures
    if name not in entries:
        raise unknown("architecture", name, entries, "tokenzoo cost --list-architectures")
    return from_entry(name, entries[name])


def from_entry(name: str, entry: dict[str, Any]) -> ModelArchitecture:
    """Build an architecture from a registry entry; raises UserError for a missing, unknown or impossible value."""
    known = {item.name for item in fields(ModelArchitecture)} - {"name"}
    for key in entry:
        if key not in known:
            raise unknown(f"key of architecture '{name}'", key, known, "tokenzoo cost --list-architectures")
    where = f"architecture '{name}'"
    if "decoder" not in entry:
        raise UserError(f"{where} needs a 'decoder' with hidden, layers, heads, kv_heads, intermediate and vocab.")
    decoder = _section(Architecture, {"name": name, **entry["decoder"]}, where)
    if decoder.heads % decoder.kv_heads:
        raise UserError(f"{where}: {decoder.heads} heads cannot share {decoder.kv_heads} key-value heads evenly.")
    vision = _section(VisionTower, entry["vision"], where) if "vision" in entry else None
    projector = _section(Projector, entry["projector"], where) if "projector" in entry else None
    if vision is not None:
        decoder = replace(
            decoder,
            vision_hidden=projector.inputs if projector else vision.hidden,
            encoder_hidden=vision.hidden,
            encoder_layers=vision.layers,
            has_cls=vision.class_token,
        )
    return ModelArchitecture(
        name=name,
        decoder=decoder,
        vision=vision,
        projector=projector,
        image=_section(Picture, entry["image"], where) if "image" in entry else None,
        video=_section(Frames, entry["video"], where) if "video" in entry else None,
        skip_mlp_add=bool(entry.get("skip_mlp_add", False)),
        source=str(entry.get("source", "")),
    )


def _section(kind: type[Section], values: dict[str, Any], where: str) -> Section:
    specs = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in specs:
            raise unknown(f"key of {where}", key, specs, "tokenzoo cost --list-architectures")
        required = specs[key].default is MISSING and specs[key].default_factory is MISSING
        checked[key] = _value(value, f"{where}: {key}", at_least=1 if required else 0)
    missing = [
        key for key, spec in specs.items() if spec.default is MISSING and spec.default_factory is MISSING and key not in checked
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    return kind(**checked)


def _value(value: Any, what: str, at_least: int) -> Any:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, Iterable):
        return tuple(_natural(item, what, 0) for item in value)
    return _natural(value, what, at_least)


def _natural(value: Any, what: str, at_least: int) -> int:
    """Return `value` if it is a whole number of at least `at_least`, else raise UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{what} must be a whole number of at least {at_least}, not {value!r}.")
    return value


__all__ = ["Frames", "ModelArchitecture", "Picture", "Projector", "VisionTower", "from_entry", "load_architecture"]
