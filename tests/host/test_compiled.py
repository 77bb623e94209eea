"""Compiled decoder layers: the same tokens and logits, compiled code where no hook lies inside it, and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import tiny_model

LAYERS, TOKENS = 3, 2
RAN: list[int] = []


def counting(graph: Any, inputs: Any) -> Callable[..., Any]:
    """A backend of torch.compile that runs the traced graph as it is, and notes that it ran."""

    def run(*args: Any) -> Any:
        RAN.append(1)
        return graph.forward(*args)

    return run


def its_forward(layers: Any, index: int) -> None:
    layers[index].forward = torch.compile(layers[index].forward, backend=counting, dynamic=True)


def itself(layers: Any, index: int) -> None:
    layers[index].compile(backend=counting, dynamic=True)


def wrapped(layers: Any, index: int) -> None:
    layers[index] = torch.compile(layers[index], backend=counting, dynamic=True)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    RAN.clear()
    yield
    torch._dynamo.reset()


def answer(model: Any, method: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    inputs = tiny_inputs(model, "single")
    with torch.no_grad(), tokenzoo.apply(model, method) as run:
        made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True)
        return made.sequences, torch.stack(made.logits), run.trace.visual_tokens()


@pytest.mark.parametrize(
    ("way", "method", "run_compiled"),
    [
        (its_forward, "random:retention=0.5", 3),
        (its_forward, "fastv:K=2", 2),  # after layer 1, whose q and k are watched
        (itself, "vtw:K=2", 1),  # the hooks of layers 1 and 2 would be compiled with them
        (wrapped, "fastv:K=2", 2),
    ],
)
def test_compiled_layers_answer_as_plain_ones(way: Callable[[Any, int], None], method: str, run_compiled: int) -> None:
    plain, model = tiny_model("llava", layers=LAYERS), tiny_model("llava", layers=LAYERS)
    layers = model.model.language_model.layers
    for index in range(LAYERS):
        way(layers, index)
    sequences, logits, kept = answer(plain, method)
    found = answer(model, method)
    assert torch.equal(found[0], sequences) and found[2] == kept
    torch.testing.assert_close(found[1], logits, atol=1e-5, rtol=0)
    assert len(RAN) == TOKENS * run_compiled


@pytest.mark.parametrize("way", [its_forward, itself, wrapped])
def test_compiled_code_is_in_place_again(way: Callable[[Any, int], None]) -> None:
    model = tiny_model("llava", layers=LAYERS)
    layers = model.model.language_model.layers
    for index in range(LAYERS):
        way(layers, index)
    before = [dict(vars(layer)) for layer in layers]
    with pytest.raises(KeyboardInterrupt), tokenzoo.apply(model, "fastv:K=2"):
        assert [dict(vars(layer)) for layer in layers] != before
        raise KeyboardInterrupt
    assert [dict(vars(layer)) for layer in layers] == before


def test_a_compiled_encoder_layer_that_a_method_reads_runs_plain() -> None:
    plain, model = tiny_model("llava", layers=LAYERS), tiny_model("llava", layers=LAYERS)
    tower = model.model.vision_tower
    encoder = getattr(tower, "vision_model", tower).encoder.layers
    for index in range(len(encoder)):
        its_forward(encoder, index)
    sequences, _, kept = answer(plain, "prumerge")
    answer(model, "none")
    everything = len(RAN)
    found = answer(model, "prumerge")
    assert torch.equal(found[0], sequences) and found[2] == kept
    assert 0 < len(RAN) - everything < everything
