"""Every method and family on an accelerator that is not there: the same tokens, no tensor of another device, few waits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from selection import crossed

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


class Made(NamedTuple):
    """Greedy tokens, the visual tokens in each layer of each sample, the waits until the prompt was through and in all."""

    tokens: torch.Tensor
    counts: list[list[int]]
    prefill: int
    waits: int


def generate(model: Any, inputs: dict[str, Any], method: str, tokens: int, log: Log) -> Made:
    log.waits.clear()
    seen: list[int] = []
    with torch.no_grad(), tokenzoo.apply(model, method) as run:
        hook = model.register_forward_hook(lambda *_: seen.append(log.count))
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        hook.remove()
        waits = log.count  # reading the trace waits too, but only then
        counts = [run.trace.visual_tokens(sample) for sample in range(len(made))]
    return Made(made.inside if isinstance(made, OnDevice) else made, counts, seen[0], waits)


@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, METHODS, every=len(FAMILIES)))
def test_a_device_keeps_the_tokens_that_the_cpu_keeps(family: str, method: str, log: Log) -> None:
    here, there = models(family)
    case = "single" if (METHODS.index(method) + FAMILIES.index(family)) % 2 else "left"
    inputs = tiny_inputs(here, case)
    try:
        expected = generate(here, inputs, method, 3, log)
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    made = generate(there, inputs_on_device(inputs), method, 3, log)
    assert made.counts == expected.counts and torch.equal(made.tokens, expected.tokens)
    assert made.waits == made.prefill, log.waits
    if load_zoo().build(method).fixed_schedule:
        assert made.prefill <= PREFILL_WAITS + OWN_WAITS.get(method, 0) * len(inputs["input_ids"]), log.waits


def test_pivots_in_the_prompts_order_cost_dart_no_wait(log: Log) -> None:
    here, there = models("llava")
    inputs = tiny_inputs(here, "left")
    expected = generate(here, inputs, "dart:order=ascending", 1, log)
    made = generate(there, inputs_on_device(inputs), "dart:order=ascending", 1, log)
    assert made.counts == expected.counts and torch.equal(made.tokens, expected.tokens)
    assert made.waits <= PREFILL_WAITS, log.waits


@pytest.mark.parametrize("method", ["dycoke:p=0.7", "snapkv+dycoke:p=0.9", "fastv+snapkv"])
@pytest.mark.parametrize(("family", "case"), [("llava-onevision", "video"), ("qwen2.5-vl", "left")])
def test_a_step_that_reads_a_part_waits_for_nothing(family: str, case: str, method: str, log: Log) -> None:
    """And two devices read what one reads."""
    here, there = models(family)
    inputs = tiny_inputs(here, case)
    expected = generate(here, inputs, method, 6, log)
    made = generate(there, inputs_on_device(inputs), method, 6, log)
    assert made.counts == expected.counts and torch.equal(made.tokens, expected.tokens)
    assert made.waits == made.prefill <= PREFILL_WAITS, log.waits
    made = generate(split_model(family), inputs_on_device(inputs), method, 6, log)
    assert made.counts == expected.counts and torch.equal(made.tokens, expected.tokens)


@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, METHODS, every=len(FAMILIES), first=7))
def test_two_devices_keep_the_tokens_that_one_keeps(family: str, method: str, log: Log) -> None:
    here, _ = models(family)
    inputs = tiny_inputs(here, "left")
    try:
        expected = generate(here, inputs, method, 3, log)
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    made = generate(split_model(family), inputs_on_device(inputs), method, 3, log)
    assert made.counts == expected.counts and torch.equal(made.tokens, expected.tokens)


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
