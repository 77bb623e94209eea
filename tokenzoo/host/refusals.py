"""What cannot work is refused before it runs, with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers.cache_utils import StaticCache

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.entry import Entry
from tokenzoo.host.family import Module


def check_mode(model: Module) -> None:
    """Training needs every token."""
    if model.training:
        raise UnsupportedError("The model is in training mode; token reduction is for inference. Call model.eval() first.")


def check_devices(model: Module, acting: bool) -> None:
    """Inside the LLM rows are dropped between layers: scores, positions and masks of all layers must lie together."""
    devices = sorted({str(device) for device in getattr(model, "hf_device_map", {}).values()})
    if acting and len(devices) > 1:
        raise UnsupportedError(
            f"The model is spread over {', '.join(devices)}; methods inside the LLM need its layers on one device. Load it "
            "without device_map, or take a method that acts before the LLM alone."
        )


def check_call(model: Module, call: dict[str, Any]) -> None:
    """The mode may have changed inside the block; losses need every token."""
    check_mode(model)
    if call.get("labels") is not None:
        raise UnsupportedError(
            "labels were passed, but tokens are dropped, so labels of the full length match no logits. Compute the loss "
            "from the logits at the kept positions (run.trace tells them), or run without a reducer."
        )


def check_prefill(decoder: Module, call: dict[str, Any]) -> None:
    """A cache of fixed shape, sliding windows and ready-made masks cannot follow per-layer lengths."""
    cache = call.get("past_key_values")
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False):
        raise UnsupportedError(
            "A static KV cache has one length for all layers, but after a reduction they differ. Use the default "
            "dynamic cache (drop cache_implementation='static')."
        )
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


def check_input_ids(input_ids: torch.Tensor | None) -> torch.Tensor:
    """Return them; without input_ids the pictures' places in the prompt cannot be found."""
    if input_ids is None:
        raise UnsupportedError(
            "The call has pixels but no input_ids, so the visual tokens cannot be found. Pass input_ids, or apply to the "
            "decoder alone with visual=[(start, end), ...]."
        )
    return input_ids


def check_decoding(call: dict[str, Any], entry: Entry | None) -> None:
    """Each call after the prefill brings one token, and continues that prefill's cache."""
    given = call.get("inputs_embeds")
    queries = (given if given is not None else call["input_ids"]).shape[1]
    cached = call["past_key_values"].get_seq_length()
    if entry is None or cached < entry.layout.length:
        raise UnsupportedError(
            "The KV cache was not filled inside this 'with' block, so its kept tokens are unknown. Prefill and decode "
            "inside one block."
        )
    if queries > 1:
        raise UnsupportedError(
            f"{queries} tokens came at once onto a filled KV cache: chunked prefill, assisted decoding and continued "
            "chats are not supported. Pass the whole prompt in one call (drop prefill_chunk_size, assistant_model)."
        )
