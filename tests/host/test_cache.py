"""Methods that choose what stays in the KV cache and what decoding steps read, against the mask oracle and by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import tokenzoo
from tokenzoo import CachedLayer, CacheRead, TokenReducer, UnsupportedError, UserError
from tokenzoo.method.reduction import PositionPolicy
from tokenzoo.method.trace import Trace
from tokenzoo.testing.check import tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.guarantees import check_logits
from tokenzoo.zoo.plugins import load_zoo


@dataclass
class Cache(TokenReducer):
    """Of each layer in `cut` every second token stays cached, from another one on in the next layer; likewise for `part`."""

    cut: Sequence[int] = ()
    part: Sequence[int] = ()
    positions: PositionPolicy = "keep"

    name: ClassVar[str] = "cache"

    def cached(self, entered: int, layers: int) -> Mapping[int, int]:
        return dict.fromkeys(self.cut, entered // 2)

    def pick_cached(self, layer: CachedLayer, count: int | None) -> torch.Tensor:
        assert count is not None
        return (torch.arange(count) * 2 + layer.index % 2).flip(0)

    def read(self, entered: int, layers: int) -> Mapping[int, int]:
        return dict.fromkeys(self.part, entered // 3)

    def pick_read(self, step: CacheRead, count: int | None) -> torch.Tensor:
        assert count is not None
        return (torch.arange(count) + step.generated + step.index) % len(step.visual)

    @property
    def cache_positions(self) -> PositionPolicy:
        return self.positions


@dataclass
class Survivors(TokenReducer):
    """After layer 2 a third of the tokens stays, in the caches of the layers before too."""

    name: ClassVar[str] = "survivors"

    def kept(self, entered: int, layers: int) -> Mapping[int, int]:
        return {2: entered // 3}

    def score(self, layer: Any) -> torch.Tensor:
        return layer.attention("last")[:, 0].mean(0)

    def cached(self, entered: int, layers: int) -> Mapping[int, None]:
        return {0: None, 1: None, 2: None}


ZOO = load_zoo((), ())
METHODS: dict[str, list[TokenReducer]] = {
    "cut": [Cache(cut=range(4))],
    "cut, not the first layer": [Cache(cut=(1, 3))],
    "cut, positions from the cache": [Cache(cut=(0, 2), positions="renumber")],
    "read": [Cache(part=(1, 2, 3))],
    "cut and read": [Cache(cut=(0, 2), part=(0, 1, 2))],
    "survivors": [Survivors()],
    "survivors, cut, read": [Survivors(), Cache(cut=(0, 1, 3), part=(2, 3))],
    "before the LLM too": [*ZOO.build("uniform").reducers, Cache(cut=(0, 1), part=(1, 2))],
    "renumbered inside": [*ZOO.build("fastv:K=1+pdrop:layer_list=[2],ratios=[0.3]").reducers, Cache(cut=(0, 3), part=(3,))],
}
FAMILIES = ("llava", "qwen2.5-vl", "llava-onevision")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_the_mask_oracle_agrees(number: int, backend: str, name: str) -> None:
    """Prefill and eight decoding steps; alone, and padded left or with a video."""
    for case in ("single", ("left", "left", "video")[number]):
        report = check_case(tiny_case(FAMILIES[number], case, backend), METHODS[name])
        assert [str(finding) for finding in report.findings] == [] and not report.unsupported and report.dropped


def test_the_oracle_sees_what_a_cache_lacks_and_a_step_does_not_read() -> None:
    """The trace alone tells the oracle, so a trace that is silent about either contradicts the logits."""
    case, method = tiny_case("llava", "left"), Cache(cut=(0, 1), part=(2, 3))
    outcome = check_case(case, [method]).outcome
    assert outcome is not None and not list(check_logits(case, outcome, [method]))
    for silent in ("cached", "reads"):
        sample = outcome.trace.samples[0]
        told, nothing = getattr(sample, silent), []
        setattr(sample, silent, nothing)
        found = [str(finding) for finding in check_logits(case, outcome, [method])]
        assert found and "decode step" in found[0] and "sample 0" in found[0]
        setattr(sample, silent, told)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_beams(family: str) -> None:
    """All beams of a sample have the same cache; what they find is what the plain model finds with those rows cut by hand."""
    case = tiny_case(family, "left")
    options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 4, "length_penalty": 0.0, "return_dict_in_generate": True}
    with tokenzoo.apply(case.model, Cache(cut=(0, 2))) as run, torch.no_grad():
        made = case.model.generate(**case.inputs, **options, output_scores=True)
        samples = run.trace.samples
    assert all(samples[place].cached == samples[place - place % 3].cached for place in range(len(samples)))
    for number in range(len(made.sequences)):
        report = forced(family, case, made.sequences[number : number + 1, -4:], number)
        assert made.sequences_scores[number].item() == pytest.approx(report, abs=1e-3)


def forced(family: str, case: Any, tokens: torch.Tensor, number: int) -> float:
    """The sum of the log probabilities of generated tokens, one decoding step after the other without beams."""
    batch = len(case.inputs["input_ids"])
    inputs = dict(case.inputs)
    with tokenzoo.apply(case.model, Cache(cut=(0, 2))), torch.no_grad():
        made = case.model.generate(
            **inputs,
            max_new_tokens=tokens.shape[1],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=[Forced(tokens.expand(batch, -1), inputs["input_ids"].shape[1])],
        )
    logits = torch.stack(made.logits, dim=1)[number].log_softmax(-1)
    return float(logits.gather(1, tokens[0][:, None]).sum())


class Forced:
    """Lets `generate` take given tokens, whatever the logits say."""

    def __init__(self, tokens: torch.Tensor, prompt: int) -> None:
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).scatter(1, self.tokens[:, ids.shape[1] - self.prompt, None], 0.0)


@torch.no_grad()
def test_a_loop_by_hand_needs_no_positions_and_two_prompts_in_flight_stay_apart() -> None:
    case, method = tiny_case("llava", "single"), [Cache(cut=(0, 1), part=(2,))]
    first = dict(case.inputs)
    second = {**first, "pixel_values": first["pixel_values"].flip(0) + 1}
    with tokenzoo.apply(case.model, method):
        expected = [case.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:] for inputs in (first, second)]
    with tokenzoo.apply(case.model, method):
        states = [case.model(**inputs, use_cache=True) for inputs in (first, second)]
        found = [[state.logits[:, -1].argmax(-1)] for state in states]
        for _ in range(3):
            for number in (1, 0):
                states[number] = case.model(input_ids=found[number][-1][:, None], past_key_values=states[number].past_key_values)
                found[number].append(states[number].logits[:, -1].argmax(-1))
    assert [torch.stack(tokens, 1).tolist() for tokens in found] == [tokens.tolist() for tokens in expected]


@torch.no_grad()
def test_without_a_cache_nothing_is_cut() -> None:
    case = tiny_case("llava", "single")
    with tokenzoo.apply(case.model, Cache(cut=(0, 1))) as run:
        logits = case.model(**case.inputs, use_cache=False).logits
    assert run.trace.samples[0].cached == [] and torch.equal(logits, case.prompt.logits)


@torch.no_grad()
def test_a_trace_tells_what_was_cut_and_read(tmp_path: Any) -> None:
    case = tiny_case("llava", "single")
    with tokenzoo.apply(case.model, Cache(cut=(0, 1), part=(2, 3))) as run:
        case.model.generate(**case.inputs, max_new_tokens=3, do_sample=False)
        trace = run.trace
    sample = trace.samples[0]
    entered, text = sum(sample.visual), len(sample.visual) - sum(sample.visual)
    assert [layers for layers, _ in sample.cached] == [[0], [1]] and len(sample.reads) == 2
    assert trace.cache_tokens() == [entered // 2 + text] * 2 + trace.tokens()[2:]
    assert trace.read_tokens(step=1) == [entered // 2] * 2 + [entered // 3] * 2 + [entered] * (trace.layers - 4)
    assert set(sample.read(0, 2)) != set(sample.read(1, 2)) and all(sample.visual[row] for row in sample.read(0, 2))
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace


# --- what cannot be -------------------------------------------------------------------------------------------------


def refused(method: TokenReducer, words: str, family: str = "llava", **options: Any) -> None:
    case = tiny_case(family, "single")
    with pytest.raises(UnsupportedError, match=words), tokenzoo.apply(case.model, method), torch.no_grad():
        case.model.generate(**case.inputs, max_new_tokens=3, do_sample=False, **options)


class Windows(DynamicLayer):
    """A layer that is no plain one."""


def test_caches_that_cannot_be_cut_are_refused_by_name() -> None:
    cache = DynamicCache()
    cache.layers.append(Windows())
    refused(Cache(cut=(0,)), "this is a Windows", past_key_values=cache)
    refused(Cache(part=(1,)), "this is an offloaded cache", past_key_values=DynamicCache(offloading=True))
    refused(Cache(cut=(0,)), "static|fixed|one length", cache_implementation="static")
    for method in (Cache(cut=(0,)), ZOO.build("dycoke:p=0.5").reducers[0]):
        refused(method, "layers of sliding_attention", family="gemma3")
        refused(method, "layers of linear_attention", family="qwen3.5")


def test_reading_by_what_was_remembered_refuses_beams() -> None:
    refused(Cache(part=(1,)), "num_beams=2", num_beams=2)
    case = tiny_case("llava", "left")
    with tokenzoo.apply(case.model, Cache(part=(1,))), torch.no_grad():
        state = case.model(**case.inputs, use_cache=True)
        state.past_key_values.reorder_cache(torch.arange(len(state.logits)).flip(0))
        with pytest.raises(UnsupportedError, match="reordered or changed between two decoding steps"):
            case.model(input_ids=torch.full((len(state.logits), 1), 5), past_key_values=state.past_key_values)


@dataclass
class Early(Cache):
    """Would read in layer 1 by the attention of layer 1."""

    name: ClassVar[str] = "early"

    def read_layers(self, layers: int) -> Sequence[int]:
        return (1,)


def test_layers_that_are_not_there_are_refused() -> None:
    case = tiny_case("llava", "single")
    for method, words in (
        (Cache(cut=(99,)), "would cut the cache of layer 99, but the model's"),
        (Cache(part=(99,)), "would choose what is read in layer 99"),
        (Early(part=(1, 2)), "which has not run by then"),
    ):
        with pytest.raises(UserError, match=words), tokenzoo.apply(case.model, method):
            pass
