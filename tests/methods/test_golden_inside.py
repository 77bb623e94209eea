"""Golden cases of methods that act inside the LLM, through the plugin as shipped: weights in the Hugging Face class.

Cases of `golden_more`; each array is told in its README.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenzoo_plugins.dart import DART
from transformers import LlamaConfig, LlamaModel

import tokenzoo
from tokenzoo.method.decoder_layer import DecoderLayer

FOLDER = Path(__file__).parents[1] / "golden_more"
METHODS = ["dart"]
TESTED: set[str] = {"inllm_weights"}


def cases(*patterns: str) -> list[str]:
    names = sorted(path.stem for pattern in patterns for path in FOLDER.glob(f"{pattern}.npz"))
    TESTED.update(names)
    return names


@cache
def golden(name: str) -> dict[str, Any]:
    arrays = np.load(FOLDER / f"{name}.npz")
    return {key: torch.tensor(arrays[key]) for key in arrays.files}


@cache
def llama() -> LlamaModel:
    arrays = golden("inllm_weights")
    weights = {key.removeprefix("w__model."): value for key, value in arrays.items() if key.startswith("w__model.")}
    config = LlamaConfig(
        hidden_size=int(arrays["hidden"]),
        num_hidden_layers=int(arrays["num_layers"]),
        num_attention_heads=int(arrays["heads"]),
        num_key_value_heads=int(arrays["kv_heads"]),
        intermediate_size=int(arrays["intermediate"]),
        vocab_size=int(arrays["vocab"]),
        rms_norm_eps=float(arrays["rms_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(arrays["rope_theta"])},
    )
    model = LlamaModel(config).eval()
    model.load_state_dict(weights)
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=tolerance)


class Watch:
    """What was left after each layer: the event after the methods."""

    def __init__(self) -> None:
        self.events: dict[int, DecoderLayer] = {}

    @tokenzoo.hookimpl
    def tokenzoo_after_layer(self, layer: DecoderLayer) -> None:
        self.events[layer.index] = layer


@torch.no_grad()
def run(name: str, method: tokenzoo.TokenReducer) -> tuple[Any, Watch]:
    """Prefill and one decoding step of a case: hidden states, cache lengths and the rows of every layer are as published."""
    arrays, model, watch = golden(name), llama(), Watch()
    start, count = int(arrays["sys_len"]), int(arrays["img_len"])
    with tokenzoo.apply(model, method, visual=[(start, start + count)], observers=[watch]) as running:
        prefill = model(inputs_embeds=arrays["inputs_embeds"], use_cache=True)
        lengths = [prefill.past_key_values.get_seq_length(layer) for layer in range(len(model.layers))]
        step = model(inputs_embeds=arrays["next_embed"], past_key_values=prefill.past_key_values)
    assert running.trace.tokens() == arrays["tokens_per_layer"].tolist()
    assert lengths == arrays["kv_len_per_layer"].tolist()
    assert close(prefill.last_hidden_state[0], arrays["last_hidden_state"])
    assert close(step.last_hidden_state[0, 0], arrays["decode_last_hidden"])
    return running.trace.samples[0], watch


# --- DART -----------------------------------------------------------------------------------------------------------


def dart(arrays: dict[str, Any], **more: Any) -> DART:
    return DART(
        ratio=float(arrays["reduction_ratio"]),
        budget=int(arrays["budget"]) if int(arrays["budget"]) >= 0 else None,
        image_pivots=int(arrays["pivot_image_token"]),
        text_pivots=int(arrays["pivot_text_token"]),
        **more,
    )


@pytest.mark.parametrize("name", cases("dart_n*"))
def test_dart(name: str) -> None:
    arrays = golden(name)
    start, layer = int(arrays["sys_len"]), int(arrays["layer"])
    sample, _ = run(name, dart(arrays, K=layer))
    visual = [row - start for row in sample.rows(layer) if sample.visual[row]]
    assert visual == arrays["kept"].tolist()
    assert [sample.entry[row] for row in sample.rows(layer)] == arrays["position_ids"].tolist()


@pytest.mark.parametrize("name", cases("dart_func_*"))
def test_dart_on_given_keys_and_states(name: str) -> None:
    """576 tokens and grouped keys, as in LLaVA-1.5; the pivots too are the published ones."""
    arrays = golden(name)
    start, count, total = int(arrays["sys_len"]), int(arrays["img_len"]), len(arrays["normed_hidden"])
    visual = torch.arange(start, start + count)
    layer = DecoderLayer(
        index=1,
        num_layers=32,
        hidden_states=arrays["normed_hidden"],
        inputs=arrays["normed_hidden"],
        visual=visual,
        text=torch.cat([torch.arange(start), torch.arange(start + count, total)]),
        entered=count,
        signals=SimpleNamespace(key=lambda rows: arrays["keys"], final_norm=lambda states: states),
    )
    method = dart(arrays)
    image, text = method.pivots(layer)
    assert image.tolist() == arrays["pivot_image"].tolist() and text.tolist() == arrays["pivot_text"].tolist()
    (left,) = method.kept(count, 32).values()
    assert method.pick(layer, left).tolist() == arrays["kept"].tolist()
    ascending = method.replace(order="ascending").pick(layer, left).tolist()
    assert len(ascending) == left and ascending != arrays["kept"].tolist()


# --- all of them ----------------------------------------------------------------------------------------------------


def test_no_golden_case_is_left_untested() -> None:
    found = {path.stem for method in METHODS for path in FOLDER.glob(f"{method}_*.npz")}
    assert found == TESTED - {"inllm_weights"}
