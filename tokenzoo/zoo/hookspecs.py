"""Every point at which a plugin can join in, as pluggy hook specifications.

The run-time hooks are called where methods act, after them (`a+b`: a, then b). A `TokenReducer` need not know them: the host
asks it first. A plugin that only watches (a recorder, a visualiser) implements them and returns nothing; it must change
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from tokenzoo.bench.task import Task
    from tokenzoo.host.family import Family
    from tokenzoo.method.cached_layer import CachedLayer, CacheRead
    from tokenzoo.method.decoder_layer import DecoderLayer
    from tokenzoo.method.encoder_layer import EncoderLayer
    from tokenzoo.method.reducer import TokenReducer
    from tokenzoo.method.visual_tokens import VisualTokens

PROJECT = "tokenzoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RunHooks:
    """Called while a model runs inside `tokenzoo.apply`."""

    @hookspec
    def tokenzoo_encoder_layer(self, layer: EncoderLayer) -> None:
        """See one image's or video's patches in an encoder layer in which a method acts, behind it."""

    @hookspec
    def tokenzoo_before_projector(self, tokens: VisualTokens) -> None:
        """See one image's or video's encoder features before the projector."""

    @hookspec
    def tokenzoo_pre_llm(self, tokens: VisualTokens) -> None:
        """See one image's or video's embeddings as they enter the LLM."""

    @hookspec
    def tokenzoo_after_attention(self, layer: DecoderLayer) -> None:
        """See one sample's visual tokens between attention and MLP of a decoder layer where methods act; -1: before layer 0."""

    @hookspec
    def tokenzoo_after_layer(self, layer: DecoderLayer) -> None:
        """See one sample's visual tokens after a decoder layer after which methods act."""

    @hookspec
    def tokenzoo_after_prefill(self, layer: CachedLayer) -> None:
        """See what methods left of one sample in a layer's KV cache once the prompt is through."""

    @hookspec
    def tokenzoo_decoding_step(self, step: CacheRead) -> None:
        """See what methods let one sample's new token read of a layer's KV cache."""


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
