"""A method on a model that vLLM serves: what it leaves of a picture, known before it is encoded, or why it cannot be served.

vLLM's process that tokenizes prompts has no weights, and must say how many placeholders a picture gets. Both that process
and the worker read the method off the config, where `--hf-overrides '{"tokenzoo": "divprune:retention=0.25"}'` put it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch

from tokenzoo import __version__
from tokenzoo.application import family_of, hook_caller
from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.family import Family, Module, VisualSource
from tokenzoo.host.methods import Methods
from tokenzoo.host.refusals import check_own_pruning
from tokenzoo.method import own_work
from tokenzoo.method.accounting import EntryAccount, cache_layers, entry_account, read_layers
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.method.workload import Source, Workload
from tokenzoo.zoo.plugins import load_zoo

#: The config's attribute that names the method.
KEY = "tokenzoo"
#: Model types whose encoder and projector are watched in vLLM: a CLIP or SigLIP tower, called as in transformers.
WATCHED = ("llava", "llava_next", "llava_onevision")
#: Of these, the ones whose tower can be built whole where vLLM leaves out layers behind the one it needs.
WHOLE = ("llava", "llava_next")
#: Pictures of no model in particular, to see at start-up what a method does.
ONE_VIEW = Source("image", (144,), grids=((12, 12),))
TILED = Source("image", (144, 288), 12, (144, 144, 144), ((12, 12), (12, 24)))
VIDEO = Source("video", (144,) * 4, grids=((12, 12),) * 4)

_MADE: dict[str, Served] = {}


@dataclass(frozen=True)
class Served:
    """A pipeline on the model of a config. `model`: the Hugging Face model without weights, which the family's adapter asks
    for the pictures' shapes."""

    pipeline: Pipeline
    family: Family
    model: Module
    methods: Methods

    @property
    def encoder_layers(self) -> list[int]:
        """The encoder layers that the methods read."""
        return self.methods.encoder_layers

    @property
    def whole_tower(self) -> bool:
        """Whether a layer is read behind the one whose output goes to the projector; vLLM does not build those by itself."""
        return max(self.encoder_layers, default=-1) > self.methods.architecture.feature_layer

    def sources(self, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        """The images or videos of what vLLM hands to its model; raises UnsupportedError where it holds ready-made embeddings."""
        found = self.family.sources(self.model, call, kind)
        if not found:
            raise UnsupportedError(f"'{self.pipeline}' needs pictures or videos; embeddings in their place cannot be reduced.")
        return found

    def entered(self, source: Source) -> int:
        """How many tokens of an image or video enter the LLM, structural ones included."""
        count = self._account(source).entered
        if not count:
            raise UnsupportedError(
                f"'{self.pipeline}' leaves nothing of {'an' if source.kind == 'image' else 'a'} {source.kind} of {source.tokens} "
                "tokens, but vLLM needs at least one placeholder. Keep more."
            )
        return count

    def identity(self, picture: str) -> str:
        """The key of a picture's reduced tokens in vLLM's caches, made of the picture's own key."""
        return sha256(f"{picture} {self.pipeline} tokenzoo {__version__}".encode()).hexdigest()

    def _account(self, source: Source) -> EntryAccount:
        try:
            return entry_account(self.methods.methods, source, self.methods.architecture)
        except DataDependentError as error:
            raise UnsupportedError(
                f"'{self.pipeline}' cannot be served: {str(error).rstrip('.')}, and vLLM must know the number before the picture "
                "is encoded. 'tokenzoo list' shows methods of fixed budgets."
            ) from None


def served(config: Any) -> Served | None:
    """What a model's config asks for; None where it names no method, or one that reduces nothing.

    Raises UserError for a method that does not exist, UnsupportedError for one that cannot be served on this model.
    """
    specification = getattr(config, KEY, None)
    if specification is None:
        return None
    if not isinstance(specification, str):
        raise UserError(f"'{KEY}' of the config is {specification!r}. Write a method as text: \"divprune:retention=0.25\".")
    pipeline = load_zoo().build(specification)
    if not any(method.acts or method.picture_scale != 1 for method in pipeline.reducers):
        return None
    key = config.to_json_string(use_diff=False)
    if key not in _MADE:
        _MADE[key] = _made(config, pipeline)
    return _MADE[key]


def named(config: Any, specification: str) -> Any:
    """A copy of a config that names a method."""
    copied = copy.deepcopy(config)
    setattr(copied, KEY, specification)
    return copied


def _made(config: Any, pipeline: Pipeline) -> Served:
    model = outline(config)
    check_own_pruning(model)
    family = family_of(model)
    architecture = family.architecture(model)
    for method in pipeline.reducers:
        method.check_model(architecture)
    mrope = family.has_mrope(family.decoder(model))
    methods = Methods(pipeline.reducers, architecture, mrope, hook_caller(load_zoo().observers()))
    made = Served(pipeline, family, model, methods)
    for method in pipeline.reducers:
        _check_method(method, made)
    tiles, videos = hasattr(config, "image_grid_pinpoints"), family.token_id(model, "video") is not None
    sources = (ONE_VIEW, *[TILED] * tiles, *[VIDEO] * videos)
    entering = [method for method in pipeline.reducers if method.enters]
    _check_encoder(made, any(method.early(source, architecture) for method in entering for source in sources))
    for source in sources:
        _check_source(made, source)
    return made


def outline(config: Any) -> Module:
    """The Hugging Face model of a config without weights."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(copy.deepcopy(config)).eval()


def _check_method(method: TokenReducer, made: Served) -> None:
    """What a method's own declaration says it needs and vLLM does not have."""
    layers = made.methods.architecture.layers
    inside = method.layers(layers)
    if inside:
        raise UnsupportedError(
            f"'{method}' drops tokens inside the LLM (after layer {inside[0]}), but vLLM's KV cache has one length for all "
            "layers. Serve a method that acts before the LLM: 'tokenzoo list' groups them by that."
        )
    if cache_layers(method, layers) or read_layers(method, layers):
        raise UnsupportedError(
            f"'{method}' chooses what the KV cache holds or a decoding step reads of it, but vLLM's cache is its own. Serve a "
            "method that acts before the LLM."
        )
    if method.acts_in_encoder:
        raise UnsupportedError(
            f"'{method}' acts inside the vision encoder, which vLLM runs as it is. Serve a method that acts behind it."
        )
    if method.picture_scale != 1:
        raise UnsupportedError(
            f"'{method}' makes pictures smaller: send smaller ones, or set the sizes in --mm-processor-kwargs."
        )
    if method.enters and method.entry_positions == "keep" and not made.methods.mrope:
        renumber = f" Write {method.name}:position=renumber." if "position" in method.parameters else ""
        raise UnsupportedError(f"'{method}' keeps position ids, but vLLM numbers a prompt's tokens 0, 1, 2, ...{renumber}")


def _check_encoder(made: Served, early: bool) -> None:
    """What is read of the encoder, or changed before the projector (`early`), must be where it can be watched in vLLM."""
    kind, layers = made.model.config.model_type, made.encoder_layers
    if kind not in WATCHED and (layers or early):
        raise UnsupportedError(
            f"'{made.pipeline}' reads the vision encoder of a '{kind}' model, which tokenzoo does not watch in vLLM "
            f"({', '.join(WATCHED)}: it does). Serve a method that sees the LLM's input alone."
        )
    if made.whole_tower and kind not in WHOLE:
        raise UnsupportedError(
            f"'{made.pipeline}' reads encoder layer {max(layers)}, but vLLM builds the encoder of a '{kind}' model up to layer "
            f"{made.methods.architecture.feature_layer}, whose output goes to the projector."
        )


def _check_source(made: Served, source: Source) -> None:
    """What a method does to a picture: its count must be fixed, and it may not look at what vLLM does not show."""
    made.entered(source)
    workload = Workload(made.methods.architecture, (source,), 8)
    for step in made._account(source).steps:
        declared = step.method.text_aware and not step.method.acts_inside
        read = {"text"} if declared else own_work.signals_read(step, source, workload) if step.acts else set()
        if "text" in read:
            raise UnsupportedError(
                f"'{step.method}' reads the question, but vLLM encodes a picture without its prompt and keeps the result for "
                "other prompts. Serve a method that 'tokenzoo list' does not mark as text-aware."
            )
        if "pooling head" in read:
            raise UnsupportedError(f"'{step.method}' reads the encoder's pooling head, which vLLM does not run.")
