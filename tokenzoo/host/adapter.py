"""A family's adapter as the host asks it: each answer is checked, so that a wrong one fails under the adapter's name.

Otherwise it would fail somewhere in a method or in the model, which are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tokenzoo.errors import FailedError, UnsupportedError, UserError
from tokenzoo.host.family import Family, Module, VisualSource

if TYPE_CHECKING:
    from tokenzoo.host.encoder import LayerRecord


class AdapterError(FailedError):
    """A family's adapter tells something of a model that is not so."""


def fault(family: Family, name: str, wrong: str) -> AdapterError:
    """The error for a method `name` of an adapter that does what it must not."""
    kind = type(getattr(family, "family", family))
    return AdapterError(
        f"The adapter of family '{family.name}' ({kind.__module__}.{kind.__qualname__}) is wrong: {name}() "
        f"{wrong.rstrip('.')}. See docs/model-families.md."
    )


class Adapter:
    """A family with its answers checked; it has the family's attributes and methods.

    `whole_views`: whether every patch of a view comes out of the encoder.
    """

    def __init__(self, family: Family, whole_views: bool = True) -> None:
        self.family, self.whole_views, self.heads = family, whole_views, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.family, name)
        return partial(self._ask, name, value) if callable(value) else value

    def _ask(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        with self.blamed(name):
            answer = method(*args)
        check = _CHECKS.get(name)
        wrong = check(self, answer, *args) if check is not None else ""
        if wrong:
            raise self.fault(name, wrong)
        return answer

    @contextmanager
    def blamed(self, name: str) -> Iterator[None]:
        """What is raised in this block is the fault of the adapter's method `name`, unless it is a refusal."""
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            text = " ".join(str(error).split()).rstrip(".")
            why = f"raised {type(error).__name__}: {text}. If it is right, the arguments of this call do not fit each other"
            raise self.fault(name, why) from error

    def fault(self, name: str, wrong: str) -> AdapterError:
        return fault(self.family, name, wrong)

    def check_model(self, model: Module) -> None:
        """Raise AdapterError where what it tells of the model's parts cannot be."""
        inside = set(model.modules())
        decoder = self.decoder(model)
        self._check_part("decoder", decoder, inside)
        for name in ("layers", "rotary_emb", "norm", "config", "embed_tokens"):
            if not hasattr(decoder, name):
                raise self.fault("decoder", f"gave a {type(decoder).__name__}, which has no '{name}'")
        root = self.root(model)
        if root is not None:
            self._check_part("root", root, inside)
            if not any(hasattr(root, f"get_{kind}_features") for kind in ("image", "video")):
                raise self.fault("root", f"gave a {type(root).__name__}, which has no get_image_features")
        with suppress(UnsupportedError):
            if root is not None:
                self._check_part("projector", self.projector(model), inside)
        self._check_encoder(model, inside)
        self._check_architecture(model, decoder)

    def check_layers(self, decoder: Module, acting: Iterable[int]) -> None:
        """The same of the layers in which, or after which, methods act; -1 stands before the first."""
        for index in acting:
            if index >= 0:
                self._check_layer(decoder.layers[index], index)

    def _check_part(self, name: str, part: Any, inside: set[nn.Module]) -> None:
        if not isinstance(part, nn.Module) or part not in inside:
            raise self.fault(name, f"gave a {type(part).__name__} that is no part of the model")

    def _check_encoder(self, model: Module, inside: set[nn.Module]) -> None:
        try:
            layers = list(self.encoder_layers(model))
        except UnsupportedError:
            return
        for layer in layers:
            self._check_part("encoder_layers", layer, inside)
        if not layers:
            return
        if not 0 <= self.feature_layer(model) < len(layers):
            raise self.fault("feature_layer", f"gave {self.feature_layer(model)}, and the encoder has {len(layers)} layers")
        with suppress(UnsupportedError):
            projections = self.encoder_projections(layers[0])
            if len(projections) not in (1, 2):
                raise self.fault("encoder_projections", f"gave {len(projections)} modules, not (q, k) or one fused (qkv,)")
            for part in projections:
                self._check_part("encoder_projections", part, set(layers[0].modules()))

    def _check_architecture(self, model: Module, decoder: Module) -> None:
        told, width = self.architecture(model), decoder.embed_tokens.weight.shape[-1]
        found = {"layers": len(decoder.layers), "hidden": width}
        for name, value in found.items():
            if getattr(told, name) != value:
                raise self.fault("architecture", f"tells {name}={getattr(told, name)}, and the decoder has {value}")
        self.heads = told.heads

    def _check_layer(self, layer: Module, index: int) -> None:
        projections = self.decoder_projections(layer)
        if projections is None:
            return
        inside = set(layer.modules())
        for part in projections:
            self._check_part("decoder_projections", part, inside)
        if projections[0] is projections[1]:
            raise self.fault("decoder_projections", f"gave one module of layer {index} for both q and k")
        head = getattr(getattr(layer, "self_attn", None), "head_dim", None)
        widths = [getattr(part, "out_features", None) for part in projections]
        for name, width in zip("qk", widths, strict=True):
            if head and width and width % head:
                raise self.fault(
                    "decoder_projections",
                    f"gave a module for the {name} of layer {index} that is {width} wide: no heads of {head}",
                )
        for name, norm in zip("qk", self.head_norms(layer), strict=True):
            if norm is not None and norm not in inside:
                raise self.fault("head_norms", f"gave a norm of the {name} of layer {index} that is no part of it")


# --- answers about one call: what is wrong with them, "" where nothing is -----------------------------------------------


def _sources(adapter: Adapter, answer: Any, model: Module, call: Mapping[str, Any], kind: str) -> str:
    if not isinstance(answer, list) or not all(isinstance(source, VisualSource) for source in answer):
        return f"gave {answer!r:.60} for an {kind} call, not a list of VisualSource"
    checked: set[int] = set()
    for source in answer:
        wrong = "" if id(source) in checked else _source(source, kind)
        if wrong:
            return wrong
        checked.add(id(source))
    return ""


def _source(visual: VisualSource, kind: str) -> str:
    source, marks = visual.source, visual.view_of_token
    if source.kind != kind:
        return f"gave a source of kind '{source.kind}' for a call with an {kind}"
    counts = torch.bincount(marks[marks >= 0], minlength=len(source.view_tokens)).tolist()
    if counts != list(source.view_tokens):
        return f"tells view_tokens={source.view_tokens}, and view_of_token has {counts} tokens of each view"
    if int((marks < 0).sum()) != source.structural:
        return f"tells structural={source.structural}, and view_of_token has {int((marks < 0).sum())} tokens of no view"
    for name, grids, tokens in (
        ("encoder_grids", visual.encoder_grids, source.before_projector),
        ("grids", source.grids or None, source.view_tokens),
    ):
        if grids is not None and [height * width for height, width in grids] != list(tokens):
            return f"tells {name}={grids}, and its views have {tokens} tokens"
    if visual.one_to_one and source.before_projector != source.view_tokens:
        return "tells one_to_one, and other tokens leave the encoder than enter the LLM"
    return ""


def _features(adapter: Adapter, answer: Any, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> str:
    wanted = [before_projector(source) for source in sources]
    return _shapes(answer, [(count, None) for count in wanted], features)


def before_projector(visual: VisualSource) -> int:
    """How many tokens of a source pass the projector where nothing is dropped, structural ones (CLS) included."""
    return sum(visual.source.before_projector) + visual.source.through


def _views(adapter: Adapter, model: Module, sources: Sequence[VisualSource]) -> list[tuple[int, int, None]]:
    """The shape [views, CLS and tokens, width] of what an encoder layer made of each source."""
    cls = int(adapter.family.has_cls(model))
    return [(len(source.encoder_grids), cls + _tokens(source), None) for source in sources]


def _tokens(visual: VisualSource) -> int:
    height, width = visual.encoder_grids[0]
    return height * width


def _outputs(adapter: Adapter, answer: Any, model: Module, output: torch.Tensor, sources: Sequence[VisualSource]) -> str:
    return _shapes(answer, _views(adapter, model, sources), output) if adapter.whole_views else ""


def _recorded(
    adapter: Adapter, answer: Any, model: Module, recorded: Sequence[torch.Tensor], sources: Sequence[VisualSource]
) -> str:
    if not adapter.whole_views:
        return ""
    shapes = _views(adapter, model, sources)
    if not isinstance(answer, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in answer):
        return "did not give (q, k) for each source"
    pairs = [_shapes([pair[which] for pair in answer], shapes, recorded[0]) for which in (0, 1)]
    return pairs[0] or pairs[1]


def _attention(
    adapter: Adapter,
    answer: Any,
    model: Module,
    record: LayerRecord,
    sources: Sequence[VisualSource],
    number: int,
    queries: str,
) -> str:
    if not adapter.whole_views:
        return ""
    shape = (len(sources[number].encoder_grids), _tokens(sources[number]), adapter.family.encoder_heads(model))
    return _shapes([answer], [shape], answer)


def _projected(adapter: Adapter, answer: Any, model: Module, output: torch.Tensor, features: torch.Tensor) -> str:
    return _shapes([answer], [(len(features), output.shape[-1])], output)


def _additions(adapter: Adapter, answer: Any, model: Module, call: Mapping[str, Any]) -> str:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return "did not give a list of tensors and the arguments to replace"
    count, wanted = adapter.family.added_layers(model), tuple(call["inputs_embeds"].shape)
    if answer[0] and len(answer[0]) != count:
        return f"gave {len(answer[0])} tensors, and added_layers() tells {count}"
    return _shapes(answer[0], [wanted] * len(answer[0]), call["inputs_embeds"])


def _rotated(adapter: Adapter, answer: Any, layer: Module, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str:
    if adapter.heads and adapter.heads % len(states):
        many = f"gave a module of {len(states)} heads, which {adapter.heads} attention heads cannot be or share"
        raise adapter.fault("decoder_projections", many)
    return _shapes([answer], [tuple(states.shape)], states)


def _shapes(answer: Any, wanted: Sequence[tuple[int | None, ...]], given: torch.Tensor) -> str:
    """ "" where the answer is one tensor of each wanted shape (None: of any size)."""
    if not isinstance(answer, (list, tuple)) or len(answer) != len(wanted):
        many = len(answer) if isinstance(answer, (list, tuple)) else f"a {type(answer).__name__}"
        return f"gave {many} where one tensor for each of {len(wanted)} sources belongs"
    for number, (tensor, shape) in enumerate(zip(answer, wanted, strict=True)):
        sizes = list(tensor.shape)
        fits = len(sizes) == len(shape) and all(want in (None, have) for want, have in zip(shape, sizes, strict=True))
        if not fits:
            named = ["width" if size is None else size for size in shape]
            return f"gave {sizes} for source {number}, which is [{', '.join(map(str, named))}] (of {list(given.shape)})"
    return ""


_CHECKS: dict[str, Callable[..., str]] = {
    "sources": _sources,
    "split_features": _features,
    "split_outputs": _outputs,
    "split_recorded": _recorded,
    "encoder_attention": _attention,
    "projector_output": _projected,
    "additions": _additions,
    "rotate": _rotated,
}
