"""`tokenzoo.apply`: run a method inside an unmodified Hugging Face model, for as long as a `with` block lasts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pluggy
import torch

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.families import BUILT_IN
from tokenzoo.host.family import Family, Module, find_family
from tokenzoo.host.prompt import Span
from tokenzoo.host.refusals import check_devices, check_mode
from tokenzoo.host.run import Run
from tokenzoo.method.events import DecoderLayer, VisualTokens
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.zoo.hookspecs import PROJECT, RunHooks, hookimpl
from tokenzoo.zoo.plugins import load_zoo

#: decoders a method is at work in; a second one at the same time would see the first one's rows
_ACTIVE: weakref.WeakSet[Module] = weakref.WeakSet()


@contextmanager
def apply(
    model: Module,
    reducer: str | TokenReducer | Pipeline | Sequence[TokenReducer],
    visual: Sequence[Span | Sequence[Span]] | None = None,
    observers: Sequence[Any] = (),
) -> Iterator[Run]:
    """Let `reducer` drop visual tokens in every `model(**inputs)` and `model.generate(**inputs)` of the block.

    `reducer`: a method's spec ("aim", "fastv:K=3,R=0.75", "prumerge+vtw"), a TokenReducer, or several in order.
    `visual`: for a bare decoder called with inputs_embeds, the (start, end) of the visual tokens, per sample.
    `observers`: plugins that implement run-time hooks and only watch; they, and those that are installed, are called
    after the methods.

    When the block ends, however it ends, the model is as it was. Raises UnsupportedError for a model family without
    adapter, a model in training mode, a method that cannot work on this model, or a second use of one model.
    """
    zoo = load_zoo()
    reducers = _reducers(zoo, reducer)
    family = family_of(model)
    decoder = family.decoder(model)
    if decoder in _ACTIVE:
        raise UnsupportedError(
            "A method is already at work in this model. Leave its 'with' block first; to run two methods one after the "
            "other in one pass, write 'a+b'."
        )
    if family.root(model) is None and visual is None:
        raise UserError("A bare decoder cannot tell its visual tokens: pass visual=[(start, end), ...], one per sample.")
    if any(_reduces(method) for method in reducers):
        check_mode(model)
        check_devices(model, any(method.implements("after_layer") for method in reducers))
    architecture = family.architecture(model)
    for method in reducers:
        method.check_model(family, architecture)
    hooks = _hook_caller([*reducers, *zoo.observers(), *observers], len(decoder.layers))
    run = Run(model, family, reducers, hooks, visual)
    with ExitStack() as stack:
        _ACTIVE.add(decoder)
        stack.callback(_ACTIVE.discard, decoder)
        run.attach(stack.callback)
        yield run


def family_of(model: Module) -> Family:
    """The adapter for a model: one that a plugin adds before a built-in one; raises UnsupportedError where there is none."""
    return find_family(model, [*load_zoo().families(), *BUILT_IN])


def _reducers(zoo: Any, reducer: Any) -> list[TokenReducer]:
    if isinstance(reducer, str):
        reducer = zoo.build(reducer)
    if isinstance(reducer, Pipeline):
        return list(reducer.reducers)
    return [reducer] if isinstance(reducer, TokenReducer) else list(reducer)


def _reduces(method: TokenReducer) -> bool:
    return any(method.implements(hook) for hook in ("before_projector", "pre_llm", "after_layer"))


def _hook_caller(plugins: Sequence[Any], num_layers: int) -> Any:
    """A pluggy hook caller that asks the plugins in the order given (pluggy itself goes last to first)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    for plugin in reversed(plugins):
        manager.register(_MethodHooks(plugin, num_layers) if isinstance(plugin, TokenReducer) else plugin)
    return manager.hook


class _MethodHooks:
    """A method as a pluggy plugin: it has just the hooks the method implements."""

    def __init__(self, method: TokenReducer, num_layers: int) -> None:
        if method.implements("before_projector"):

            @hookimpl
            @torch.no_grad()
            def tokenzoo_before_projector(tokens: VisualTokens) -> None:
                tokens.reduce(method.before_projector(tokens), method.name)

            self.tokenzoo_before_projector = tokenzoo_before_projector
        if method.implements("pre_llm"):

            @hookimpl
            @torch.no_grad()
            def tokenzoo_pre_llm(tokens: VisualTokens) -> None:
                tokens.reduce(method.pre_llm(tokens), method.name)

            self.tokenzoo_pre_llm = tokenzoo_pre_llm
        if method.implements("after_layer"):
            acting = frozenset(method.layers(num_layers))

            @hookimpl
            @torch.no_grad()
            def tokenzoo_after_layer(layer: DecoderLayer) -> None:
                if layer.index in acting and len(layer.visual):
                    layer.reduce(method.after_layer(layer), method.name)

            self.tokenzoo_after_layer = tokenzoo_after_layer
