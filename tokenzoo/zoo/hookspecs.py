"""Every point at which a plugin can join in, as pluggy hook specifications.

The three run-time hooks are called in the order in which the methods are written (`a+b`: a, then b). A
`TokenReducer` need not know them: the host registers one for each of its methods `before_projector`, `pre_llm` and
`after_layer`. A plugin that only watches (a recorder, a visualiser) implements them directly and returns nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from tokenzoo.bench.task import Task
    from tokenzoo.host.family import Family
    from tokenzoo.method.events import DecoderLayer, VisualTokens
    from tokenzoo.method.reducer import TokenReducer

PROJECT = "tokenzoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RunHooks:
    """Called while a model runs inside `tokenzoo.apply`."""

    @hookspec
    def tokenzoo_before_projector(self, tokens: VisualTokens) -> None:
        """See, or through `tokens.reduce` change, one image's or video's encoder features before the projector."""

    @hookspec
    def tokenzoo_pre_llm(self, tokens: VisualTokens) -> None:
        """See, or through `tokens.reduce` change, one image's or video's embeddings as they enter the LLM."""

    @hookspec
    def tokenzoo_after_layer(self, layer: DecoderLayer) -> None:
        """See, or through `layer.reduce` change, one sample's visual tokens after a decoder layer."""


class RegistrationHooks:
    """Called once, when plugins are loaded."""

    @hookspec
    def tokenzoo_methods(self) -> list[type[TokenReducer]]:  # type: ignore[empty-body]
        """Return the methods this plugin adds."""

    @hookspec
    def tokenzoo_families(self) -> list[Family]:  # type: ignore[empty-body]
        """Return the model families this plugin adds."""

    @hookspec
    def tokenzoo_tasks(self) -> list[Task]:  # type: ignore[empty-body]
        """Return the evaluation tasks this plugin adds."""

    @hookspec
    def tokenzoo_registry(self) -> dict[str, Any]:  # type: ignore[empty-body]
        """Return a registry fragment (methods, architectures, hardware), in the form of registry.yaml."""
