"""`tokenzoo.apply`: run a method inside an unmodified Hugging Face model, for as long as a `with` block lasts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pluggy

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.adapter import Adapter
from tokenzoo.host.families import BUILT_IN
from tokenzoo.host.family import Family, Module, find_family
from tokenzoo.host.methods import Methods
from tokenzoo.host.prompt import Span
from tokenzoo.host.refusals import check_model, check_own_pruning, check_scaling
from tokenzoo.host.run import Run
from tokenzoo.method.accounting import check_layers
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.zoo.hookspecs import PROJECT, RunHooks
from tokenzoo.zoo.plugins import load_zoo

#: decoders a method is at work in; a second one at the same time would see the first one's rows
_ACTIVE: weakref.WeakSet[Module] = weakref.WeakSet()


@contextmanager
def apply(
    model: Module,
    reducer: str | TokenReducer | Pipeline | Sequence[TokenReducer],
    visual: Sequence[Span | Sequence[Span]] | None = None,
    observers: Sequence[Any] = (),
    questions: Sequence[str] | None = None,
    tokenizer: Any = None,
    scaled: bool = False,
) -> Iterator[Run]:
    """Let `reducer` drop visual tokens in every `model(**inputs)` and `model.generate(**inputs)` of the block.

    `reducer`: a method's spec ("aim", "fastv:K=3,R=0.75", "prumerge+vtw"), a TokenReducer, or several in order.
    `visual`: for a bare decoder called with inputs_embeds, the (start, end) of the visual tokens, per sample, in columns of
    the batch, padding counted.
    `observers`: plugins that implement run-time hooks; they, and those that are installed, watch after the methods.
    `questions`: each sample's question in words, and `tokenizer`: the model's, for methods that read the question.

    `scaled`: the inputs were made of pictures that a method's `picture_scale` has already made smaller.

    When the block ends, however it ends, the model is as it was. Raises UnsupportedError for a model family without
    adapter, a model in training mode, compiled as a whole or tensor parallel, a method that cannot work on this model, or a
    second use of one model.
    """
    outer, model = model, unwrapped(model)
    zoo = load_zoo()
    reducers = _reducers(zoo, reducer)
    check_own_pruning(model)
    adapter = Adapter(family_of(model), whole_views=not any(method.acts_in_encoder for method in reducers))
    adapter.check_model(model)
    family = cast(Family, adapter)
    decoder = family.decoder(model)
    if decoder in _ACTIVE:
        raise UnsupportedError(
            "A method is already at work in this model. Leave its 'with' block first; to run two methods one after the "
            "other in one pass, write 'a+b'."
        )
    if family.root(model) is None and visual is None:
        raise UserError("A bare decoder cannot tell its visual tokens: pass visual=[(start, end), ...], one per sample.")
    if any(method.acts for method in reducers):
        check_model(outer, decoder)
    architecture = family.architecture(model)
    for method in reducers:
        method.check_model(architecture)
        check_layers(method, architecture)
        if method.picture_scale != 1:
            check_scaling(method.name, family, model, scaled)
    methods = Methods(reducers, architecture, family.has_mrope(decoder), hook_caller([*zoo.observers(), *observers]))
    adapter.check_layers(decoder, methods.acting)
    run = Run(model, family, methods, visual, questions, tokenizer)
    with ExitStack() as stack:
        _ACTIVE.add(decoder)
        stack.callback(_ACTIVE.discard, decoder)
        run.attach(outer, stack.callback)
        yield run
        run.settle()


def family_of(model: Module) -> Family:
    """The adapter for a model: one that a plugin adds before a built-in one; raises UnsupportedError where there is none."""
    added = load_zoo().families()
    for family in added:
        if not isinstance(family, Family):
            raise UserError(
                f"A plugin's tokenzoo_families returned {family!r:.60}, not instances of tokenzoo.host.family.Family."
            )
    return find_family(model, [*added, *BUILT_IN])


def unwrapped(model: Module) -> Module:
    """The Hugging Face model inside a wrapper that has `get_base_model` (PEFT), else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _reducers(zoo: Any, reducer: Any) -> list[TokenReducer]:
    if isinstance(reducer, str):
        reducer = zoo.build(reducer)
    if isinstance(reducer, Pipeline):
        return list(reducer.reducers)
    return [reducer] if isinstance(reducer, TokenReducer) else list(reducer)


def hook_caller(plugins: Sequence[Any]) -> Any:
    """A pluggy hook caller that asks the plugins in the order given (pluggy itself goes last to first)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    for plugin in reversed(plugins):
        manager.register(plugin)
    return manager.hook
