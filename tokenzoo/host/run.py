"""A method at work in a model: the hooks on model and decoder, the prefills, the decoding steps."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host import refusals
from tokenzoo.host.adapter import fault
from tokenzoo.host.batch import Layout
from tokenzoo.host.cache import CacheView, Queries, Reading, cut
from tokenzoo.host.compiled import uncompile_hooked
from tokenzoo.host.decoding import DecodingStep
from tokenzoo.host.encoder_reduction import EncoderReduction
from tokenzoo.host.entry import entry_positions, reduce_entry, unreduced_entry
from tokenzoo.host.family import Family, Module
from tokenzoo.host.masks import LayerTypes
from tokenzoo.host.methods import Methods
from tokenzoo.host.mlp_half import MlpHalf
from tokenzoo.host.placement import beside
from tokenzoo.host.prefill import Prefill
from tokenzoo.host.prompt import KINDS, PlacedSource, Prompt, Span, place, prompt_of_spans
from tokenzoo.host.recording import build_trace
from tokenzoo.host.stages import LayerReduction, Stage
from tokenzoo.host.vision import VisionWatch, watch
from tokenzoo.method.reduction import ActsAfter
from tokenzoo.method.trace import Trace
from tokenzoo.method.validation import Checks


class Run:
    """What `tokenzoo.apply` gives: the model runs as always; afterwards `trace` tells what became of the tokens.

    `questions` may be set anew before each call of the model in the block.
    """

    def __init__(
        self,
        model: Module,
        family: Family,
        methods: Methods,
        spans: Sequence[Span | Sequence[Span]] | None = None,
        questions: Sequence[str] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.model, self.family, self.methods = model, family, methods
        self.decoder, self.root = family.decoder(model), family.root(model)
        self.spans, self.questions, self.tokenizer = spans, questions, tokenizer
        self.mrope, self.types = methods.mrope, LayerTypes(family, self.decoder)
        self.prefills: WeakKeyDictionary[Any, Prefill] = WeakKeyDictionary()
        self.prefill: Prefill | None = None
        self.prefilling = False
        self.keep = 0
        self.step: DecodingStep | None = None
        self.reading: Reading | None = None
        refusals.check_cache_methods(self.decoder, self.types.since(0), bool(methods.cut), bool(methods.read))
        self.last_queries = {index: self._queries(index, rows) for index, rows in methods.query_rows.items()}
        self.step_queries = {index: self._queries(index, 1) for index in methods.read_layers}
        self.input_ids: torch.Tensor | None = None
        self.thread: int | None = None
        self.vision: VisionWatch | None = None
        recorded = methods.encoder_layers  # refuses a method that reads an encoder which is not there
        if self.root is not None:
            reduce = methods.reduce_early if methods.reduces_early else None
            inner = None
            if methods.in_encoder:
                proportional = any(method.proportional_attention for method in methods.in_encoder)
                refusals.check_encoder(family, model, methods.in_encoder)
                inner = EncoderReduction(family, model, methods.encoder_halves, proportional, methods.reduce_encoder)
            number = methods.encoder_method if methods.in_encoder else 0
            self.vision = VisionWatch(family, model, recorded, reduce, inner, number)

    def _queries(self, index: int, rows: int) -> Queries:
        return Queries(self.family, self.decoder.layers[index], rows)

    # --- hooks --------------------------------------------------------------------------------------------------

    def attach(self, outer: Module, at_end: Callable[[Callable[[], None]], object]) -> None:
        """Register every hook; `at_end` is given each one's removal at once, so that none is lost on an error.

        `outer` is the module that the user calls: the model, or what wraps it.
        """

        def keep(handle: Any) -> None:
            at_end(handle.remove)

        if self.methods.reduce_anything:
            keep(outer.register_forward_pre_hook(self._check_call, with_kwargs=True))
            keep(outer.register_forward_hook(self._end_call, always_call=True))
            if hasattr(outer, "generate"):
                at_end(watch(outer, "generate", self._generate))
        table = self.family.position_table(self.model) if self.methods.scales_pictures else None
        if table is not None:
            keep(table.register_forward_pre_hook(_interpolate, with_kwargs=True))
        if self.vision is not None:
            assert self.root is not None
            keep(self.root.register_forward_pre_hook(self._begin, with_kwargs=True))
            self.vision.attach(at_end)
        keep(self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True))
        keep(self.decoder.register_forward_hook(self._leave, always_call=True))
        reductions = {
            index: LayerReduction(self.family, self.decoder, index, halves, self.methods.reduce_layer)
            for index, halves in self.methods.acting.items()
        }
        for reduction in reductions.values():
            if "attention" in reduction.halves and reduction.index >= 0:
                branch = self.family.mlp_branch(reduction.layer)
                for handle in MlpHalf(reduction.layer, branch, self._reduction(reduction, "attention")).attach():
                    keep(handle)
        if self.methods.reduce_anything:
            for index in range(self.family.added_layers(self.model)):
                keep(self.decoder.layers[index].register_forward_hook(self._add(index)))
        layers = len(self.decoder.layers)
        on_cache = bool(self.methods.cut or self.methods.read)
        for index, queries in self.last_queries.items():
            keep(queries.watch(self._cached_rows(index, prefill=True)))
        for index, queries in self.step_queries.items():
            keep(queries.watch(self._cached_rows(index, prefill=False)))
        for index in range(0 if on_cache else max(0, min(reductions, default=layers)), layers):
            layer, own = self.decoder.layers[index], reductions.get(index)
            before = reductions.get(-1) if index == 0 else None
            keep(layer.register_forward_pre_hook(self._before_layer(index, before, own), with_kwargs=True))
            if own is not None:
                keep(layer.register_forward_hook(self._after(own)))
                for handle in own.watch(lambda: self.prefilling):
                    keep(handle)
        if self.methods.reduce_anything:
            uncompile_hooked(outer, at_end)

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What generation cannot do with tokens gone is refused before it encodes anything."""
        refusals.check_generation(self.model, args, kwargs, bool(self.methods.read))
        return original(*args, **kwargs)

    def _check_call(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.thread not in (None, threading.get_ident()):
            raise UnsupportedError(
                "Two threads call the model inside one 'with' block at the same time. Call it from one thread after the other, "
                "or give each thread a model of its own."
            )
        refusals.check_call(module, self.decoder, kwargs)
        self.thread = threading.get_ident()

    def _end_call(self, module: Module, args: tuple, output: Any) -> None:
        if self.thread == threading.get_ident():
            self.thread = None

    def _begin(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The whole model was called: in a prefill, remember its input_ids and forget older pictures."""
        assert self.vision is not None
        call = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs} if args else kwargs
        if _cached(call):
            return
        self.input_ids = call.get("input_ids")
        given = {kind for kind, output in (call.get("mm_encoder_outputs") or {}).items() if output is not None}
        if self.methods.reduce_anything:
            refusals.check_embeddings(call)
        refusals.check_encoded(given, self.vision.encoded)
        self.vision.encoded = {kind: self.vision.encoded[kind] for kind in given}

    def _enter(self, module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The decoder was called: reduce its input in a prefill, shorten mask and positions in decoding."""
        if args:
            kwargs = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
        changed = self._decode(kwargs) if _cached(kwargs) else self._prefill(kwargs)
        return ((), {**kwargs, **changed}) if changed or args else None

    def _leave(self, module: Module, args: tuple, output: Any) -> None:
        """Cut the cache that a prefill filled, and tie the prefill to it; let go of what only this call needs: decoding may
        be long."""
        cache = getattr(output, "past_key_values", None)
        prefilling, self.prefilling, self.step, self.reading = self.prefilling, False, None, None
        if self.prefill is None:
            return
        if prefilling:
            if cache is not None:
                if self.methods.cut or self.methods.read:
                    refusals.check_cache(cache)
                layers = len(self.decoder.layers)
                cut(self.prefill, cache, self.methods.cut, layers, self.last_queries, self.methods.cut_layer)
                self.prefills[cache] = self.prefill
            self.prefill.forget()
            if self.keep and self.methods.reduce_anything and output is not None:  # its caller counts the prompt's rows
                output.last_hidden_state = output.last_hidden_state[:, -self.keep :]
        if cache is not None and self.methods.read:
            self.prefill.last_seen.note(cache)
        for queries in (*self.last_queries.values(), *self.step_queries.values()):
            queries.forget()

    # --- prefill ------------------------------------------------------------------------------------------------

    def _prefill(self, call: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        if call.get("inputs_embeds") is None:
            changed["inputs_embeds"] = self.decoder.embed_tokens(call["input_ids"])
            changed["input_ids"] = None
        embeddings: torch.Tensor = {**call, **changed}["inputs_embeds"]
        batch, length = embeddings.shape[:2]
        if self.methods.reduce_anything:
            refusals.check_prefill(self.decoder, call, self.types.several)
            if (self.methods.cut or self.methods.read) and call.get("past_key_values") is not None:
                refusals.check_cache(call["past_key_values"])
        mask, blocks = call.get("attention_mask"), None
        if isinstance(mask, dict):
            mask, blocks = self.types.read(mask)
        padding, ids = self._on_cpu(mask if mask is not None and mask.ndim == 2 else None)
        prompt = self._find_visual_tokens(batch, length, ids)
        if self.methods.reduce_anything:
            refusals.check_visible(prompt, padding)
        full = Layout.from_mask(padding, batch, length, embeddings.device)
        prompt.enter(padding, batch, length, embeddings.device)
        if self.prefill is not None:
            self.prefill.checks.settle()
        self.prefilling, checks = True, Checks()
        rows: list[torch.Tensor] = []
        if self.methods.enters:
            entry, rows = reduce_entry(
                prompt,
                full,
                embeddings,
                self.methods.reduce_entry,
                self.methods.entry_policies,
                self.questions,
                self._embed_words,
                checks,
            )
        else:
            entry = unreduced_entry(prompt, full, embeddings.device)
        refusals.check_text(prompt, entry)
        if entry.reduced:
            changed["inputs_embeds"] = entry.layout.pad(rows)
            changed["position_ids"] = entry_positions(entry, call.get("position_ids"), self.mrope)
            # without any mask or cache, transformers would take gaps between kept positions for borders of packed sequences
            gapless = not self.mrope and all(sample.numbered is not None for sample in entry.samples)
            for name in self.family.row_arguments:
                if call.get(name) is not None:
                    changed[name] = entry.layout.pad([s[e.columns] for s, e in zip(call[name], entry.samples, strict=True)])
            masked = entry.layout.padded or mask is not None or not gapless
            changed["attention_mask"] = entry.layout.mask(embeddings.device) if masked else None
        self.keep = call.get("logits_to_keep") or 0
        if self.methods.architecture.shared_kv_layers and min(prompt.behind) < self.keep:
            changed["logits_to_keep"] = 0  # the last rows may be dropped: only the host knows which are the last then
        call = {**call, **changed}
        stage = Stage.of_entry(entry, call.get("position_ids"), blocks)
        if entry.reduced and self.types.several:
            masks = self.types.prefill_masks(0, entry.layout, stage.positions, stage.blocks, changed["inputs_embeds"])
            changed["attention_mask"] = masks
        entering = call["inputs_embeds"] if self.methods.acting else None
        self.prefill = Prefill(prompt, entry, [stage], checks, entering)
        if self.methods.reduce_anything:
            reported = self.types.reported
            if (min(self.methods.acting, default=0) < reported or reported in self.methods.cut) and entry.next_position is None:
                entry_positions(entry, call.get("position_ids"), self.mrope)  # it counts the cache, which reports fewer rows
            self.prefill.additions, replaced = self.family.additions(self.model, {**call, "inputs_embeds": embeddings})
            changed |= replaced
        return changed

    def _embed_words(self, words: list[str]) -> torch.Tensor:
        if self.tokenizer is None:
            raise UnsupportedError("The question's words need the model's tokenizer. Pass tokenizer= to tokenzoo.apply.")
        ids = self.tokenizer(words, is_split_into_words=True, add_special_tokens=True, return_tensors="pt")["input_ids"][0]
        if len(ids) > 1 and int(ids[0]) == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return self.decoder.embed_tokens(beside(ids, self.decoder.embed_tokens))

    def _on_cpu(self, mask: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The padding mask and input_ids on the CPU: what the prompt looks like decides shapes. The one wait of a prefill."""
        ids = None if self.spans is not None else self.input_ids
        if mask is None or ids is None or mask.shape != ids.shape or mask.device != ids.device:
            return (None if mask is None else mask.cpu()), (None if ids is None else ids.cpu())
        padding, ids = torch.stack([mask.to(ids.dtype), ids]).cpu()
        return padding, ids

    def _find_visual_tokens(self, batch: int, length: int, input_ids: torch.Tensor | None) -> Prompt:
        if self.spans is not None:
            return prompt_of_spans(self.spans, batch, length)
        assert self.vision is not None
        sources: list[PlacedSource] = []
        for kind in KINDS:
            encoded = self.vision.encoded.get(kind)
            if not encoded and input_ids is not None and self.methods.reduce_anything:
                refusals.check_no_placeholder(input_ids, self.family.token_id(self.model, kind), kind)
            if encoded:
                ids, token = refusals.check_input_ids(input_ids), self.family.token_id(self.model, kind)
                if token is None:
                    raise fault(self.family, "token_id", f"tells no token for an {kind}, and one was encoded")
                sources += place(encoded, ids.eq(token), kind)
        return Prompt(sources)

    def _decode(self, call: dict[str, Any]) -> dict[str, Any]:
        if not self.methods.reduce_anything:
            return {}
        prefill = self.prefills.get(call["past_key_values"])
        refusals.check_decoding(call, prefill.cached(self.types.reported).layout.length if prefill else None)
        assert prefill is not None
        self.prefill = prefill
        self.step = DecodingStep(self.types, prefill, call, self.mrope)
        if self.methods.read:
            cache = call["past_key_values"]
            prefill.last_seen.check(cache, "+".join(method.name for method, _ in self.methods.reading()))
            self.reading = Reading(prefill, cache, len(self.decoder.layers), self.step.generated, self.step_queries)
        return self.step.decoder_inputs()

    # --- decoder layers -----------------------------------------------------------------------------------------

    def _reduction(self, reduction: LayerReduction, after: ActsAfter) -> Callable[[torch.Tensor], torch.Tensor | None]:
        """Ask the methods at one place of a prefill; what is left of the states there, None where all is."""

        def reduce(states: torch.Tensor) -> torch.Tensor | None:
            if not self.prefilling:
                return None
            assert self.prefill is not None
            return reduction.run(self.prefill, states, after)

        return reduce

    def _before_layer(self, index: int, before: LayerReduction | None, reduction: LayerReduction | None) -> Callable[..., Any]:
        """Hand a layer after a reduction its own positions and mask, in a decoding step also what it reads; let a reducing
        layer keep its inputs.

        `before`: the reduction ahead of layer 0.
        """
        reads = index in self.methods.read
        recording = {True: self.last_queries.get(index), False: self.step_queries.get(index)}

        def hook(module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            assert self.prefill is not None
            changed: dict[str, Any] = {}
            if self.family.layer_arguments and len(args) > 1:
                args, kwargs = args[:1], {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
                del kwargs["hidden_states"]
            hidden = args[0] if args else kwargs["hidden_states"]
            if before is not None and self.prefilling:
                before.begin(hidden, kwargs)
                left = before.run(self.prefill, hidden, "attention")
                before.end()
                if left is not None:
                    hidden = left
                    args, kwargs = ((left, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": left})
            if self.prefilling:
                stage = self.prefill.stage(index)
                if stage is not self.prefill.stages[0]:
                    changed = stage.prefill_inputs(self.types.of(index), hidden.shape[1])
                    if hidden.shape[1] == stage.layout.length:
                        given = {name: kwargs[name] for name in self.family.layer_arguments if kwargs.get(name) is not None}
                        changed |= {name: self.prefill.entered_rows(index, value) for name, value in given.items()}
            else:
                assert self.step is not None
                changed = self.step.layer_inputs(index, hidden)
                if reads:
                    changed = {**changed, **self._read(index, hidden)}
            queries = recording[self.prefilling]
            if queries is not None:
                queries.angles = {**kwargs, **changed}["position_embeddings"]
            if reduction is not None and self.prefilling:
                reduction.begin(hidden, {**kwargs, **changed})
            return (args, {**kwargs, **changed}) if changed else None

        return hook

    def _cached_rows(self, index: int, prefill: bool) -> Callable[[], Stage | None]:
        """Tells, while a prefill (or else a decoding step) runs, what rows layer `index` has."""

        def stage() -> Stage | None:
            return self.prefill.stage(index) if self.prefill is not None and self.prefilling == prefill else None

        return stage

    def _read(self, index: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What to change of the arguments of a layer that reads a part of its cache."""
        assert self.reading is not None and self.step is not None and self.prefill is not None
        part = self.reading.choose(index, hidden.device, self.methods.read_layer)
        if part is None:
            return {}
        columns, layout = part
        view = CacheView(self.reading.cache, columns, self.prefill.cached(index).layout.length)
        return {"past_key_values": view, "attention_mask": self.step.part_mask(layout, hidden)}

    def _add(self, index: int) -> Callable[..., Any]:
        """Add what the decoder would add after a layer; before methods see the layer."""

        def hook(module: Module, args: tuple, output: Any) -> Any:
            added = self.prefill.added(index, output.device) if self.prefilling and self.prefill is not None else None
            return None if added is None else output + added.to(output)

        return hook

    def _after(self, reduction: LayerReduction) -> Callable[..., Any]:
        """Ask the methods after a layer of the prefill, and drop what they drop."""
        reduce = self._reduction(reduction, "layer")

        def hook(module: Module, args: tuple, output: Any) -> Any:
            left = reduce(output) if "layer" in reduction.halves else None
            reduction.end()
            return left

        return hook

    # --- afterwards ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Raise InvalidReductionError where a device found out since that a method returned what it must not."""
        if self.prefill is not None:
            self.prefill.checks.settle()

    @property
    def trace(self) -> Trace:
        """What became of the tokens in the last prefill; raises UnsupportedError where none has run."""
        if self.prefill is None:
            raise UnsupportedError("No prefill has run yet: call the model inside the 'with' block, then read the trace.")
        self.settle()
        return build_trace(len(self.decoder.layers), self.prefill)


def _interpolate(module: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A smaller picture takes the encoder's position embeddings from between those of the full size."""
    return args, {**kwargs, "interpolate_pos_encoding": True}


def _cached(call: dict[str, Any]) -> int:
    """Tokens already in the KV cache of a call; 0 in a prefill."""
    cache = call.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
