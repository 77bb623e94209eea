"""What cannot work is refused before it runs, with the reason and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.compiled import compiled
from tokenzoo.host.entry import Entry
from tokenzoo.host.family import FULL, Family, Module
from tokenzoo.host.masks import BACKENDS
from tokenzoo.host.prompt import KINDS, Prompt
from tokenzoo.method.reducer import TokenReducer


def check_own_pruning(model: Module) -> None:
    """A model that drops visual tokens by itself (nemotron_h_omni) would be measured with two reductions at once."""
    owners = [getattr(model, "config", None), *model.modules()]  # a module may have copied it from the config
    rate = next((found for owner in owners if (found := getattr(owner, "video_pruning_rate", None))), None)
    if rate:
        raise UnsupportedError(
            f"This '{model.config.model_type}' model drops visual tokens by itself (video_pruning_rate={rate}), so no method "
            "would be compared fairly on it. Load it with from_pretrained(..., video_pruning_rate=0.0)."
        )


def check_scaling(method: str, family: Family, model: Module, scaled: bool) -> None:
    """A method that makes pictures smaller needs a model to which that makes a difference, and inputs made so."""
    if not family.takes_smaller_pictures(model):
        raise UnsupportedError(
            f"'{method}' makes pictures smaller, and {type(model).__name__} makes all of one size again: nothing would be saved. "
            "Choose a method that reduces tokens; 'tokenzoo list' shows them."
        )
    if not scaled:
        raise UnsupportedError(
            f"'{method}' acts on pictures before inputs are made of them. Make the inputs of smaller pictures, as "
            "Checkpoint.scaled(scale).inputs(questions) does, and pass scaled=True."
        )


def check_model(model: Module, decoder: Module) -> None:
    """What a whole model must not be: in training, compiled as a whole, tensor parallel."""
    if any(module.training for module in model.modules()):
        raise UnsupportedError(
            "The model, or a part of it, is in training mode; token reduction is for inference. Call model.eval() first."
        )
    if any(compiled(module) and any(part is decoder for part in module.modules()) for module in model.modules()):
        raise UnsupportedError(
            "The model is compiled as a whole, and compiled code does not call the hooks that drop tokens. Load it again and "
            "compile its parts: for layer in decoder.layers: layer.forward = torch.compile(layer.forward)."
        )
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise UnsupportedError(
            "The model is split by tensor parallelism, so each process would score its own heads and drop other tokens. Load it "
            "without tp_plan."
        )


def check_cache_methods(decoder: Module, layer_types: Collection[str], cuts: bool, reads: bool) -> None:
    """What methods that act on the KV cache cannot do: layers that keep a window or no keys at all, and steps that read a part
    with an attention that cannot."""
    others = sorted({*layer_types, *(getattr(decoder.config, "layer_types", None) or ())} - {FULL})
    if (cuts or reads) and others:
        raise UnsupportedError(
            f"A method is to choose what the KV cache holds or a step reads of it, and layers of {' and '.join(others)} keep a "
            "window or a state, not every token. Choose a method that leaves the cache alone."
        )
    backend = decoder.config._attn_implementation
    if reads and backend not in BACKENDS:
        raise UnsupportedError(
            f"With '{backend}' attention a decoding step cannot be shown a part of the KV cache. Load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )


def check_cache(cache: Any) -> None:
    """A cache whose rows can be chosen holds every layer's keys and values as plain tensors."""
    kinds = {type(layer).__name__ for layer in cache.layers}
    if type(cache) is DynamicCache and kinds <= {DynamicLayer.__name__} and not getattr(cache, "offloading", False):
        return
    what = type(cache).__name__ if kinds <= {DynamicLayer.__name__} else " and ".join(sorted(kinds))
    what = "an offloaded cache" if getattr(cache, "offloading", False) else f"a {what}"
    raise UnsupportedError(
        f"A method is to choose what stays or is read in the KV cache, and this is {what}. Use the default dynamic cache."
    )


def check_encoder(family: Family, model: Module, methods: Sequence[TokenReducer]) -> None:
    """Methods that act inside the encoder need layers of a known form, whose patches go on as a list without a grid."""
    name, kind = methods[0].name, model.config.model_type
    layers = family.encoder_layers(model)
    if family.encoder_mlp(layers[0]) is None:
        raise UnsupportedError(
            f"'{name}' acts inside the vision encoder, and the layers of a '{kind}' model's encoder are not known to let tokens "
            "leave (windows, or another form than CLIP's and SigLIP's). Take a method that acts behind the encoder."
        )
    if any(family.patches_per_side(model, one) != 1 for one in KINDS):
        raise UnsupportedError(
            f"'{name}' acts inside the vision encoder, and a '{kind}' model joins neighbouring patches on their grid behind it; "
            "what is left is no grid. Take a method that acts behind the encoder."
        )
    if not isinstance(getattr(model.config, "vision_feature_layer", -1), int):
        raise UnsupportedError(
            f"'{name}' acts inside the vision encoder, and this model puts the features of several of its layers together, which "
            "hold different tokens then. Take a method that acts behind the encoder."
        )
    backend = model.config.vision_config._attn_implementation
    masked = any(
        method.proportional_attention or None in method.encoder_kept(0, family.architecture(model)).values() for method in methods
    )
    if masked and backend not in BACKENDS:
        raise UnsupportedError(
            f"'{name}' weighs keys inside the vision encoder by an additive mask, which '{backend}' attention does not take. "
            "Load the model with attn_implementation='sdpa' or 'eager'."
        )


def check_generation(model: Module, args: Sequence[Any], options: dict[str, Any], reads: bool) -> None:
    """Ways to generate that bring several tokens onto a filled cache, or that need one cache length."""
    config = options.get("generation_config") or model.generation_config
    given = {**dict(inspect.signature(type(model).generate).bind_partial(model, *args).arguments), **options}

    def asked(name: str) -> Any:
        return given.get(name) if given.get(name) is not None else getattr(config, name, None)

    for name, what in (
        ("assistant_model", "assisted decoding"),
        ("prompt_lookup_num_tokens", "prompt lookup"),
        ("prefill_chunk_size", "a prefill in chunks"),
    ):
        if asked(name) is not None:
            raise UnsupportedError(
                f"{name} was given, but {what} brings several tokens onto a KV cache of unequal layers. Leave {name} out."
            )
    if reads and (asked("num_beams") or 1) > 1:
        raise UnsupportedError(
            f"num_beams={asked('num_beams')} reorders the KV cache at every step, but a method chooses what a step reads by what "
            "it remembers of the step before. Leave num_beams out."
        )
    if asked("cache_implementation") not in (None, "dynamic", "dynamic_full"):
        raise UnsupportedError(
            f"cache_implementation='{asked('cache_implementation')}' has one length for all layers, but after a reduction "
            "they differ. Use the default dynamic cache."
        )


def check_call(model: Module, decoder: Module, call: dict[str, Any]) -> None:
    """The mode may have changed inside the block; losses and row numbers need every token."""
    if model.training or decoder.training:
        raise UnsupportedError("The model is in training mode; token reduction is for inference. Call model.eval() first.")
    if call.get("labels") is not None:
        raise UnsupportedError(
            "labels were passed, but tokens are dropped, so labels of the full length match no logits. Compute the loss "
            "from the logits at the kept positions (run.trace tells them), or run without a reducer."
        )
    if isinstance(call.get("logits_to_keep"), torch.Tensor):
        raise UnsupportedError(
            "logits_to_keep names rows of the full prompt, but tokens are dropped, so they are other rows. Pass a number (the "
            "last rows), and read run.trace for the rest."
        )


def check_embeddings(call: dict[str, Any]) -> None:
    """Embeddings made by hand do not tell which of them are pictures."""
    if call.get("inputs_embeds") is not None and call.get("input_ids") is None:
        raise UnsupportedError(
            "inputs_embeds were passed without input_ids, so the visual tokens cannot be found. Pass input_ids and the pixels, "
            "or apply to the decoder alone with visual=[(start, end), ...]."
        )


def check_visible(prompt: Prompt, mask: torch.Tensor | None) -> None:
    """The padding mask [batch, length] must not hide visual tokens: rows would be taken for others. Both on the CPU."""
    for source in prompt.sources:
        if mask is not None and not bool(mask[source.sample, source.columns].all()):
            raise UnsupportedError(
                f"The attention mask hides visual tokens of sample {source.sample}. Unmask them, or leave that picture out; "
                "spans given as visual= are columns of the padded batch."
            )


def check_text(prompt: Prompt, entry: Entry) -> None:
    """Something must be left to predict from."""
    check_rows([sample.columns for sample in entry.samples])


def check_rows(rows: Sequence[torch.Tensor]) -> None:
    """Raise UnsupportedError where a sample has no token left."""
    for sample, left in enumerate(rows):
        if not len(left):
            raise UnsupportedError(
                f"Sample {sample} is made of visual tokens alone, and all were dropped: nothing is left. Add text to the prompt."
            )


def check_prefill(decoder: Module, call: dict[str, Any], per_layer_type: bool) -> None:
    """A cache of fixed shape cannot follow per-layer lengths; sliding windows and ready-made masks only where the family
    knows the masks of its layer types."""
    cache = call.get("past_key_values")
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False):
        raise UnsupportedError(
            "A static KV cache has one length for all layers, but after a reduction they differ. Use the default "
            "dynamic cache (drop cache_implementation='static')."
        )
    backend = decoder.config._attn_implementation
    if per_layer_type:
        if backend not in BACKENDS:
            raise UnsupportedError(
                f"This decoder has a mask for each layer type, which '{backend}' attention cannot be given after tokens were "
                f"dropped. Load the model with attn_implementation='sdpa' or 'eager'."
            )
        return
    types = getattr(decoder.config, "layer_types", None)
    everywhere = types is None and getattr(decoder.config, "sliding_window", None)
    if everywhere or "sliding_attention" in (types or ()):
        raise UnsupportedError(
            "This decoder has sliding-window layers, whose window would count kept tokens only. Load it with "
            "use_sliding_window=False (Mistral: sliding_window=None)."
        )
    mask = call.get("attention_mask")
    if isinstance(mask, dict) or (mask is not None and mask.ndim != 2):
        raise UnsupportedError("A ready-made attention mask cannot be shortened. Pass the 2-D mask of the processor, or none.")


def check_encoded(given: Collection[str], encoded: Collection[str]) -> None:
    """Pictures that were encoded outside the block were never seen."""
    for kind in given:
        if kind not in encoded:
            raise UnsupportedError(
                f"mm_encoder_outputs holds {kind} features that were computed outside this 'with' block. Pass the pixels, "
                "or encode them inside the block."
            )


def check_no_placeholder(input_ids: torch.Tensor, token: int | None, kind: str) -> None:
    """Placeholders of pictures that nobody encoded would be taken for text."""
    count = int(input_ids.eq(token).sum()) if token is not None else 0
    if count:
        raise UnsupportedError(
            f"input_ids hold {count} {kind} tokens, and no {kind} was encoded inside this 'with' block. Pass its pixels."
        )


def check_input_ids(input_ids: torch.Tensor | None) -> torch.Tensor:
    """Return them; without input_ids the pictures' places in the prompt cannot be found."""
    if input_ids is None:
        raise UnsupportedError(
            "The call has pixels but no input_ids, so the visual tokens cannot be found. Pass input_ids, or apply to the "
            "decoder alone with visual=[(start, end), ...]."
        )
    return input_ids


def check_decoding(call: dict[str, Any], filled: int | None) -> None:
    """Each call after the prefill brings one token, and continues that prefill's cache, in which it left `filled` rows."""
    given = call.get("inputs_embeds")
    queries = (given if given is not None else call["input_ids"]).shape[1]
    cached = call["past_key_values"].get_seq_length()
    if filled is None or cached < filled:
        raise UnsupportedError(
            "The KV cache was not filled inside this 'with' block, or is a copy, so its kept tokens are unknown. Prefill and "
            "decode inside one block, with the cache that the prefill returned."
        )
    if queries > 1:
        raise UnsupportedError(
            f"{queries} tokens came at once onto a filled KV cache: a second prompt on "
            "the same cache is not supported. Pass the whole prompt in one call."
        )
