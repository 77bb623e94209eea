"""Every method and family on an accelerator that is not there: the same tokens, no tensor of another device, few waits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError
from tokenzoo.application import family_of
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.testing.emulated import (
    Log,
    MixedDevicesError,
    OnDevice,
    emulated_devices,
    follow,
    inputs_on_device,
    on_device,
)
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import FAMILIES, tiny_model
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 12
METHODS = load_zoo((), ()).names()
#: Waits of one prefill: for the sizes of the pictures, and for what the prompt looks like.
PREFILL_WAITS = 2
#: Waits of a method's own for each picture. DART's published order of pivots is that of a Python set of their row numbers, which
#: follows from how CPython fills, grows and probes a hash table; a device would have to repeat that pivot by pivot. PruneSID's
#: rule is a chain of decisions, each after the one before: the host takes them, and reads the tokens' order and who rivals whom.
OWN_WAITS = {"dart": 1, "prunesid": 2}


def pairs(first: int) -> list[Any]:
    """Every method on every family; the ordinary selection has each method once, on another family than from another `first`."""
    return [
        pytest.param(family, method, marks=() if (row + column) % len(FAMILIES) == first else pytest.mark.matrix)
        for column, family in enumerate(FAMILIES)
        for row, method in enumerate(METHODS)
    ]


@cache
def models(family: str) -> tuple[Any, Any]:
    """The same tiny model on the CPU and on the device."""
    return tiny_model(family, layers=LAYERS), on_device(tiny_model(family, layers=LAYERS))


@cache
def split_model(family: str) -> Any:
    """Encoder and the LLM's second half on device 1, the rest on device 0; each module moves what it is given."""
    model = tiny_model(family, layers=LAYERS)
    adapter = family_of(model)
    decoder, root = adapter.decoder(model), adapter.root(model)
    try:
        projector = adapter.projector(model)
    except UnsupportedError:  # no method can act before it
        projector = None
    towers = [child for child in root.children() if child not in (decoder, projector)]
    second = [*decoder.layers[LAYERS // 2 :], decoder.norm]
    names = {module: name for name, module in model.named_modules()}
    places = {names[module].replace(".", "__"): 1 for module in (*towers, *second)}
    on_device(model, 0, **places)
    for module in (*towers, *second):
        follow(module, 1)
    others = [child for child in decoder.children() if child not in (decoder.layers, decoder.norm)]
    first = [*others, *decoder.layers[: LAYERS // 2], model.lm_head]
    for module in first + [child for child in root.children() if child is projector]:
        follow(module, 0)
    return model


@pytest.fixture
def log() -> Iterator[Log]:
    with emulated_devices() as found:
        yield found


def generate(model: Any, inputs: dict[str, Any], method: str, tokens: int, log: Log) -> tuple[torch.Tensor, list[list[int]], int]:
    """Greedy tokens, the visual tokens in each layer of each sample, and the waits until the tokens were there."""
    log.waits.clear()
    with torch.no_grad(), tokenzoo.apply(model, method) as run:
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        waits = log.count  # reading the trace waits too, but only then
        counts = [run.trace.visual_tokens(sample) for sample in range(len(made))]
    return (made.inside if isinstance(made, OnDevice) else made), counts, waits


@pytest.mark.parametrize(("family", "method"), pairs(0))
def test_a_device_keeps_the_tokens_that_the_cpu_keeps(family: str, method: str, log: Log) -> None:
    here, there = models(family)
    case = "single" if (METHODS.index(method) + FAMILIES.index(family)) % 2 else "left"
    inputs = tiny_inputs(here, case)
    try:
        tokens, counts, _ = generate(here, inputs, method, 3, log)
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    *_, prefill = generate(there, inputs_on_device(inputs), method, 1, log)
    made, kept, waits = generate(there, inputs_on_device(inputs), method, 3, log)
    assert kept == counts and torch.equal(made, tokens)
    assert waits == prefill, log.waits
    if load_zoo().build(method).fixed_schedule:
        assert prefill <= PREFILL_WAITS + OWN_WAITS.get(method, 0) * len(inputs["input_ids"]), log.waits


def test_pivots_in_the_prompts_order_cost_dart_no_wait(log: Log) -> None:
    here, there = models("llava")
    inputs = tiny_inputs(here, "left")
    tokens, counts, _ = generate(here, inputs, "dart:order=ascending", 1, log)
    made, kept, waits = generate(there, inputs_on_device(inputs), "dart:order=ascending", 1, log)
    assert kept == counts and torch.equal(made, tokens)
    assert waits <= PREFILL_WAITS, log.waits


@pytest.mark.parametrize("method", ["dycoke:p=0.7", "snapkv+dycoke:p=0.9", "fastv+snapkv"])
@pytest.mark.parametrize(("family", "case"), [("llava-onevision", "video"), ("qwen2.5-vl", "left")])
def test_a_step_that_reads_a_part_waits_for_nothing(family: str, case: str, method: str, log: Log) -> None:
    """And two devices read what one reads."""
    here, there = models(family)
    inputs = tiny_inputs(here, case)
    tokens, counts, _ = generate(here, inputs, method, 6, log)
    *_, prefill = generate(there, inputs_on_device(inputs), method, 1, log)
    made, kept, waits = generate(there, inputs_on_device(inputs), method, 6, log)
    assert kept == counts and torch.equal(made, tokens)
    assert waits == prefill <= PREFILL_WAITS, log.waits
    made, kept, _ = generate(split_model(family), inputs_on_device(inputs), method, 6, log)
    assert kept == counts and torch.equal(made, tokens)


@pytest.mark.parametrize(("family", "method"), pairs(7))
def test_two_devices_keep_the_tokens_that_one_keeps(family: str, method: str, log: Log) -> None:
    here, _ = models(family)
    inputs = tiny_inputs(here, "left")
    try:
        tokens, counts, _ = generate(here, inputs, method, 3, log)
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    made, kept, _ = generate(split_model(family), inputs_on_device(inputs), method, 3, log)
    assert kept == counts and torch.equal(made, tokens)


class Wrong(TokenReducer):
    """Keeps one token that is not there, or one token twice."""

    name = "wrong"
    indices = (0, 99)

    def left(self, views: Any, source: Any, architecture: Any) -> int:
        return 2

    def reduce(self, tokens: Any) -> torch.Tensor:
        return torch.tensor(self.indices, device=tokens.features.device)


class Twice(Wrong):
    indices = (3, 3)


@pytest.mark.parametrize(("method", "message"), [(Wrong(), "out of range"), (Twice(), "kept twice")])
def test_what_a_method_must_not_return_is_found_when_the_block_ends(method: TokenReducer, message: str, log: Log) -> None:
    _, there = models("llava")
    inputs = inputs_on_device(tiny_inputs(models("llava")[0], "single"))
    with pytest.raises(InvalidReductionError, match=message), tokenzoo.apply(there, [method]), torch.no_grad():
        there(**inputs)


def test_the_device_refuses_what_a_gpu_refuses(log: Log) -> None:
    first, other = OnDevice(torch.ones(3)), OnDevice(torch.ones(3), 1)
    with pytest.raises(MixedDevicesError, match="on the CPU"):
        first + torch.ones(3)
    with pytest.raises(MixedDevicesError, match="two devices"):
        first + other
    assert torch.arange(3, device="emulated:0").device == first.device and (first + 1).device == first.device
    assert torch.equal(first.cpu() + 1, torch.full((3,), 2.0))
