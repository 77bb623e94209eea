"""A method at work in a model: the hooks on model and decoder, the prefill's state, the decoding steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.host.batch import Layout
from tokenzoo.host.decoding import DecodingStep
from tokenzoo.host.entry import Entry, entry_positions, reduce_entry, unreduced_entry
from tokenzoo.host.family import Family, Module
from tokenzoo.host.prompt import KINDS, PlacedSource, Prompt, Span, place, prompt_of_spans
from tokenzoo.host.recording import build_trace
from tokenzoo.host.refusals import check_call, check_decoding, check_encoded, check_input_ids, check_prefill
from tokenzoo.host.stages import LayerReduction, Stage
from tokenzoo.host.vision import VisionWatch
from tokenzoo.method.events import DecoderLayer, VisualTokens
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.trace import Trace


class Run:
    """What `tokenzoo.apply` gives: the model runs as always; afterwards `trace` tells what became of the tokens."""

    def __init__(
        self,
        model: Module,
        family: Family,
        reducers: Sequence[TokenReducer],
        hooks: Any,
        spans: Sequence[Span | Sequence[Span]] | None,
    ) -> None:
        self.model, self.family, self.reducers, self.hooks = model, family, reducers, hooks
        self.decoder, self.root = family.decoder(model), family.root(model)
        self.spans = spans
        self.mrope = "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {})
        self.prompt: Prompt | None = None
        self.entry: Entry | None = None
        self.stages: list[Stage] = []
        self.prefilling = False
        self.step: DecodingStep | None = None
        layers = len(self.decoder.layers)
        self.acting = acting_layers(reducers, layers)
        self.reduces_entry = any(r.implements("pre_llm") or r.implements("before_projector") for r in reducers)
        self.keeps_entry = self.mrope or any(
            r.entry_positions == "keep" for r in reducers if r.implements("pre_llm") or r.implements("before_projector")
        )
        self.renumbers = not self.mrope and any(r.layer_positions == "renumber" for r in reducers if r.implements("after_layer"))
        self.vision: VisionWatch | None = None
        self.input_ids: torch.Tensor | None = None
        if self.root is not None:
            projects = any(r.implements("before_projector") for r in reducers)
            encoder = len(family.encoder_layers(model))
            wanted = sorted({i for r in reducers for i in r.encoder_layers(encoder)})
            self.vision = VisionWatch(family, model, wanted, self._before_projector if projects else None)

    # --- hooks --------------------------------------------------------------------------------------------------

    def attach(self, at_end: Callable[[Callable[[], None]], object]) -> None:
        """Register every hook; `at_end` is given each one's removal at once, so that none is lost on an error."""

        def keep(handle: Any) -> None:
            at_end(handle.remove)

        keep(self.model.register_forward_pre_hook(self._check_call, with_kwargs=True))
        if self.vision is not None:
            assert self.root is not None
            keep(self.root.register_forward_pre_hook(self._begin, with_kwargs=True))
            self.vision.attach(at_end)
        keep(self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True))
        keep(self.decoder.register_forward_hook(self._leave, always_call=True))
        reductions = {index: LayerReduction(self.family, self.decoder, index, self._after_layer) for index in self.acting}
        for index in range(self.acting[0] if self.acting else len(self.decoder.layers), len(self.decoder.layers)):
            layer, reduction = self.decoder.layers[index], reductions.get(index)
            keep(layer.register_forward_pre_hook(self._before_layer(index, reduction), with_kwargs=True))
            if reduction is not None:
                keep(layer.register_forward_hook(self._after(reduction)))
                for handle in reduction.watch(lambda: self.prefilling):
                    keep(handle)

    @property
    def reduces(self) -> bool:
        return bool(self.acting) or self.reduces_entry

    def _before_projector(self, tokens: VisualTokens) -> None:
        self.hooks.tokenzoo_before_projector(tokens=tokens)

    def _pre_llm(self, tokens: VisualTokens) -> None:
        self.hooks.tokenzoo_pre_llm(tokens=tokens)

    def _after_layer(self, layer: DecoderLayer) -> None:
        self.hooks.tokenzoo_after_layer(layer=layer)

    def _check_call(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.reduces:
            check_call(module, kwargs)

    def _begin(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The whole model was called: in a prefill, remember its input_ids and forget older pictures."""
        assert self.vision is not None
        call = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs} if args else kwargs
        if _cached(call):
            return
        self.input_ids = call.get("input_ids")
        given = {kind for kind, output in (call.get("mm_encoder_outputs") or {}).items() if output is not None}
        check_encoded(given, self.vision.encoded)
        self.vision.encoded = {kind: self.vision.encoded[kind] for kind in given}

    def _enter(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The decoder was called: reduce its input in a prefill, shorten mask and positions in decoding."""
        if args:
            kwargs = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
        changed = self._decode(kwargs) if _cached(kwargs) else self._prefill(kwargs)
        return ((), {**kwargs, **changed}) if changed or args else None

    def _leave(self, module: Module, args: tuple, output: Any) -> None:
        """Let go of what only the prefill needs: decoding may be long."""
        self.prefilling, self.step = False, None
        for stage in self.stages:
            stage.mask = stage.position_embeddings = None
        for source in self.prompt.sources if self.prompt is not None else ():
            if source.tokens is not None:
                source.tokens.text_embeddings = None

    # --- prefill ------------------------------------------------------------------------------------------------

    def _prefill(self, call: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        if call.get("inputs_embeds") is None:
            changed["inputs_embeds"] = self.decoder.embed_tokens(call["input_ids"])
            changed["input_ids"] = None
        embeddings: torch.Tensor = {**call, **changed}["inputs_embeds"]
        batch, length = embeddings.shape[:2]
        if self.reduces:
            check_prefill(self.decoder, call)
        prompt = self.prompt = self._find_visual_tokens(batch, length, embeddings.device)
        mask = call.get("attention_mask")
        full = Layout.from_mask(mask if mask is not None and mask.ndim == 2 else None, batch, length)
        self.prefilling = True
        rows: list[torch.Tensor] = []
        if self.reduces_entry:
            self.entry, rows = reduce_entry(prompt, full, embeddings, self._pre_llm)
        else:
            self.entry = unreduced_entry(prompt, full, embeddings.device)
        self.stages = [Stage.of_entry(self.entry)]
        if not self.entry.reduced:
            return changed
        changed["inputs_embeds"] = self.entry.layout.pad(rows)
        changed["position_ids"] = entry_positions(self.entry, call.get("position_ids"), self.keeps_entry)
        # without any mask or cache, transformers would take gaps between kept positions for borders of packed sequences
        masked = self.entry.layout.padded or mask is not None or self.keeps_entry
        changed["attention_mask"] = self.entry.layout.mask(embeddings.device) if masked else None
        return changed

    def _find_visual_tokens(self, batch: int, length: int, device: torch.device) -> Prompt:
        if self.spans is not None:
            return prompt_of_spans(self.spans, batch, length, device)
        assert self.vision is not None
        sources: list[PlacedSource] = []
        for kind in KINDS:
            encoded = self.vision.encoded.get(kind)
            if encoded:
                ids, token = check_input_ids(self.input_ids), self.family.token_id(self.model, kind)
                assert token is not None
                sources += place(encoded, ids.eq(token), kind)
        return Prompt(sources)

    def _decode(self, call: dict[str, Any]) -> dict[str, Any]:
        if not self.reduces:
            return {}
        check_decoding(call, self.entry)
        assert self.entry is not None
        self.step = DecodingStep(self.decoder, self.entry, call, self.mrope)
        return self.step.decoder_inputs()

    # --- decoder layers -----------------------------------------------------------------------------------------

    def _before_layer(self, index: int, reduction: LayerReduction | None) -> Callable[..., Any]:
        """Hand a layer after a reduction its own positions and mask; let a reducing layer keep its inputs."""

        def hook(module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            stage = self._stage_of(index)
            changed = {}
            hidden = args[0] if args else kwargs["hidden_states"]
            if stage.first_layer > 0:
                if self.prefilling:
                    changed = stage.prefill_inputs()
                else:
                    assert self.step is not None
                    changed = self.step.layer_inputs(stage, hidden)
            if reduction is not None and self.prefilling:
                reduction.inputs, reduction.call = hidden, {**kwargs, **changed}
            return (args, {**kwargs, **changed}) if changed else None

        return hook

    def _stage_of(self, index: int) -> Stage:
        return next(stage for stage in reversed(self.stages) if stage.first_layer <= index)

    def _after(self, reduction: LayerReduction) -> Callable[..., Any]:
        """Ask the methods after a layer of the prefill, and drop what they drop."""

        def hook(module: Module, args: tuple, output: Any) -> Any:
            if not self.prefilling:
                return None
            assert self.prompt is not None and self.entry is not None
            entered = [len(sample.visual) for sample in self.entry.samples]
            result = reduction.run(self._stage_of(reduction.index), self.prompt, entered, output, self.renumbers)
            reduction.inputs, reduction.call = None, {}
            if result is None:
                return None
            stage, hidden = result
            self.stages.append(stage)
            return hidden

        return hook

    # --- afterwards ---------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """What became of the tokens in the last prefill; raises UnsupportedError where none has run."""
        if self.entry is None or self.prompt is None:
            raise UnsupportedError("No prefill has run yet: call the model inside the 'with' block, then read the trace.")
        return build_trace(len(self.decoder.layers), self.prompt, self.entry, self.stages)


def acting_layers(reducers: Sequence[TokenReducer], layers: int) -> list[int]:
    """The decoder layers after which methods act, ascending; raises UserError for one that no layer follows."""
    acting: set[int] = set()
    for reducer in reducers:
        if reducer.implements("after_layer"):
            named = set(reducer.layers(layers))
            wrong = sorted(index for index in named if not 0 <= index < layers - 1)
            if wrong:
                raise UserError(
                    f"'{reducer}' acts after layer {wrong[0]}, but of the model's {layers} layers (from 0) only those up to "
                    f"{layers - 2} have one behind them. Run 'tokenzoo show {reducer.name}'."
                )
            acting |= named
    return sorted(acting)


def _cached(call: dict[str, Any]) -> int:
    """Tokens already in the KV cache of a call; 0 in a prefill."""
    cache = call.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
