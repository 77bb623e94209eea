"""A method in words, for `tokenzoo list`, `tokenzoo show` and the method pages of the documentation."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tokenzoo.errors import UserError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.workload import Architecture, Source
from tokenzoo.zoo.errors import kept_from_ending, reason
from tokenzoo.zoo.plugins import Plugin, Zoo
from tokenzoo.zoo.registry import Method

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
#: Where a method can act, in the order of a forward pass.
PLACES = (
    "before the encoder",
    "inside the encoder",
    "before the projector",
    "before the LLM",
    "inside the LLM",
    "in the KV cache",
    "in decoding steps",
)
#: What a method's declaration is asked about: a picture and a video of LLaVA-1.5's size.
EXAMPLES: dict[Literal["image", "video"], tuple[int, ...]] = {"image": (576,), "video": (576,) * 8}
EXAMPLE = Architecture(
    "an example", 4096, 32, 32, 32, 11008, 32064, vision_hidden=1024, encoder_hidden=1024, encoder_layers=24, encoder_heads=16,
    feature_layer=22, has_cls=True,
)  # fmt: skip
EXAMPLE_TOKENS = sum(EXAMPLES["image"])
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type in words, its default as written on the command line, what it does."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Description:
    """Everything that `show` prints about a method."""

    name: str
    title: str
    summary: str
    documentation: str
    hooks: tuple[str, ...]
    reduces: tuple[str, ...]
    text_aware: bool
    parameters: tuple[Parameter, ...]
    positions: str
    budget: str
    families: str
    method: Method
    plugin: Plugin


def describe(zoo: Zoo, name: str) -> Description:
    """Describe a method. Raises UserError for one that is unknown, failed to load, or fails when its declaration is asked."""
    cls = zoo.method(name)
    try:
        with kept_from_ending():
            return _described(zoo, name, cls)
    except UserError:
        raise
    except Exception as error:
        zoo.failures[name] = f"its declaration fails: {reason(error)}"
        raise UserError(f"Method '{name}' cannot be described: {zoo.failures[name]}") from error


def _described(zoo: Zoo, name: str, cls: type[TokenReducer]) -> Description:
    entry = zoo.registry.methods.get(name, Method())
    documentation = inspect.cleandoc(cls.__doc__ or "") if "__doc__" in vars(cls) else ""
    if documentation.startswith(f"{cls.__name__}("):  # what @dataclass writes where there is none
        documentation = ""
    method = cls()
    return Description(
        name=name,
        title=entry.title or cls.__name__,
        summary=entry.summary or first_sentence(documentation),
        documentation=documentation,
        hooks=_places(method),
        reduces=_reduces(method),
        text_aware=method.text_aware,
        parameters=parameters(cls),
        positions=_positions(method),
        budget=_budget(method),
        families=_families(method),
        method=entry,
        plugin=zoo.info(name),
    )


def grouped(described: Iterable[Description]) -> dict[str, list[Description]]:
    """Methods under the first place where they act, in the order of a forward pass; "" for what acts nowhere."""
    methods = list(described)
    groups = {place: [method for method in methods if place == (method.hooks or ("",))[0]] for place in ("", *PLACES)}
    return {place: members for place, members in groups.items() if members}


def parameters(cls: type[TokenReducer]) -> tuple[Parameter, ...]:
    """The parameters of a method in the order they are declared."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        about = parameter_description(cls, field.name, hints[field.name])
        found.append(Parameter(field.name, type_in_words(hints[field.name]), value_as_written(default), about))
    return tuple(found)


def parameter_description(cls: type[TokenReducer], name: str, hint: Any) -> str:
    """What a parameter does: its Field's description, else the docstring's sentence that names it, if it is short."""
    for metadata in _metadata(hint):
        if getattr(metadata, "description", None):
            return str(metadata.description)
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    for sentence in re.split(r"(?<=[.;:)])\s+(?=[A-Z`*])", text):
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", sentence):
            return sentence if len(sentence) <= 140 else "see above"
    return ""


def _metadata(hint: Any) -> list[Any]:
    own = list(getattr(hint, "__metadata__", ()))
    return own + [item for argument in typing.get_args(hint) for item in _metadata(argument)]


def type_in_words(hint: Any) -> str:
    """`integer ≥ 1`, `number > 0 and ≤ 1`, `up | down`, `list of integers`."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *metadata = typing.get_args(hint)
        bounds = [
            f"{sign} {getattr(part, key)}"
            for item in metadata
            for part in (item, *getattr(item, "metadata", ()))
            for key, sign in _BOUNDS.items()
            if getattr(part, key, None) is not None
        ]
        return f"{type_in_words(base)} {' and '.join(dict.fromkeys(bounds))}".strip()
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(argument) for argument in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (list, tuple, set, frozenset) or _is_sequence(hint):
        inner = [type_in_words(argument) for argument in typing.get_args(hint) if argument is not Ellipsis]
        return f"list of {inner[0]}" if inner else "list"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _is_sequence(hint: Any) -> bool:
    return getattr(typing.get_origin(hint), "__name__", "") == "Sequence"


def value_as_written(value: Any) -> str:
    """A value as it is written in a method's specification."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(value_as_written(item) for item in value) + "]"
    return str(value)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, without its full stop."""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", line)[0].removesuffix(".")


def _places(method: TokenReducer) -> tuple[str, ...]:
    """Where a method acts."""
    early = method.enters and method.implements("early")
    cuts, reads = (bool(declared(EXAMPLE_TOKENS, EXAMPLE.layers)) for declared in (method.cached, method.read))
    acts = (
        method.picture_scale != 1,
        method.acts_in_encoder,
        early,
        method.enters and not early,
        method.acts_inside,
        cuts,
        reads,
    )
    return tuple(place for place, there in zip(PLACES, acts, strict=True) if there)


def _reduces(method: TokenReducer) -> tuple[str, ...]:
    """Of which kinds of pictures its declaration leaves fewer tokens; what acts from the LLM on only is not told the kind."""
    return tuple(
        kind
        for kind, views in EXAMPLES.items()
        if method.picture_scale != 1
        or method.acts_in_encoder
        or (_leaves_fewer(method, kind, views) if method.enters else method.acts_inside or method.caches or method.reads)
    )


def _leaves_fewer(method: TokenReducer, kind: Literal["image", "video"], views: tuple[int, ...]) -> bool:
    try:
        left = method.left(views, Source(kind, views), EXAMPLE)
    except UserError:  # it refuses such pictures
        return False
    return left is None or (left if isinstance(left, int) else sum(left)) < sum(views)


def _positions(method: TokenReducer) -> str:
    rule = {"keep": "kept", "renumber": "renumbered"}
    parts = [f"{rule[method.entry_positions]} before the LLM"] if method.enters or method.acts_in_encoder else []
    parts += [f"{rule[method.layer_positions]} inside the LLM"] if method.acts_inside else []
    parts += ["renumbered in decoding"] if method.caches and method.cache_positions == "renumber" else []
    return ", ".join(parts) or "unchanged"


def _budget(method: TokenReducer) -> str:
    if method.fixed_schedule:
        return "fixed by the parameters"
    return "by default as the picture asks: priced from a recorded trace"


def _families(method: TokenReducer) -> str:
    if method.picture_scale != 1:
        return "those that take pictures of several sizes: LLaVA-1.5, Qwen-VL"
    if method.acts_in_encoder:
        return "those with CLIP's or SigLIP's encoder whose patches are not joined behind it (acts inside the vision encoder)"
    if method.implements("encoder_layers"):
        return "all multimodal families (reads the vision encoder)"
    return "all families, bare decoders included"
