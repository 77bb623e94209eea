"""Tokens that leave between a decoder layer's attention and its MLP, and before layer 0: methods as a third party writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import tokenzoo
from tokenzoo import DecoderLayer, Reduction, TokenReducer, UnsupportedError, UserError
from tokenzoo.cost import architecture_of, price, price_trace, workload_of
from tokenzoo.counting import count
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import ActsAfter
from tokenzoo.method.trace import Trace
from tokenzoo.testing import tiny_inputs, tiny_model
from tokenzoo.testing.case import Outcome, run
from tokenzoo.testing.check import check_all, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.guarantees import check_logits, check_promises, check_structure
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 8


@dataclass
class Thinning(TokenReducer):
    """Fewer tokens before layer 0, inside layers 0 and 3, and in the MLP of the last layer."""

    name: ClassVar[str] = "thinning"
    acts_after: ClassVar[ActsAfter] = "attention"
    knob: ClassVar[str] = ""

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        places = (-1, 0, 3, layers - 1)
        return {place: round((1 - share / 5) * entered) for share, place in enumerate(places, 1)}

    def score(self, layer: DecoderLayer) -> torch.Tensor:
        if layer.index < 0:
            return layer.hidden_states.float().norm(dim=-1)
        return layer.strongest_attention(layer.text_after)


@dataclass
class Folding(TokenReducer):
    """In every layer, the last quarter of the tokens is folded into the first ones, until few are left."""

    name: ClassVar[str] = "folding"
    acts_after: ClassVar[ActsAfter] = "attention"
    position: str = "keep"

    def kept(self, entered: int, layers: int) -> dict[int, None]:
        return dict.fromkeys(range(-1, layers))

    def pick(self, layer: DecoderLayer, count: int | None) -> torch.Tensor | Reduction:
        tokens, left = len(layer.visual), max(4, len(layer.visual) * 3 // 4)
        if tokens <= left:
            return torch.arange(tokens)
        states = layer.hidden_states[layer.visual]
        folded = tokens - left
        features = torch.cat([(states[:folded] + states[left:]) / 2, states[folded:left]])
        return Reduction(features, torch.arange(left))


def reducers_of(names: str) -> list[TokenReducer]:
    own = {"thinning": Thinning(), "folding": Folding(), "renumbering": Folding(position="renumber")}
    zoo = load_zoo((), ())
    return [one for name in names.split("+") for one in ([own[name]] if name in own else zoo.build(name).reducers)]


RUNS = [
    ("llava", "single", "sdpa", "thinning"),
    ("llava", "left", "eager", "folding"),
    ("llava", "right", "sdpa", "folding"),
    ("llava", "images", "eager", "thinning"),
    ("qwen2-vl", "single", "eager", "folding"),
    ("qwen2-vl", "left", "sdpa", "thinning"),
    ("qwen2.5-vl", "mixed", "sdpa", "folding"),
    ("gemma3", "left", "sdpa", "thinning"),
    ("gemma3", "left", "eager", "folding"),
    ("qwen3-vl", "left", "sdpa", "folding"),
    ("qwen3-vl-moe", "single", "sdpa", "thinning"),
    ("llava-onevision", "video", "sdpa", "folding"),
    ("idefics2", "single", "sdpa", "thinning"),
    ("qwen3.5", "left", "sdpa", "folding"),
    ("qwen3.5-moe", "single", "eager", "folding"),
    ("llava", "left", "sdpa", "renumbering"),
    ("llava", "left", "sdpa", "thinning+fastv:K=4+folding"),
    ("qwen2-vl", "left", "sdpa", "fastv:K=4+thinning"),
    ("llava", "left", "sdpa", "random+thinning"),
]


@pytest.mark.parametrize(("family", "case", "backend", "methods"), RUNS)
def test_what_leaves_inside_a_layer_is_gone(family: str, case: str, backend: str, methods: str) -> None:
    report = check_case(tiny_case(family, case, backend, LAYERS), reducers_of(methods))
    assert [str(finding) for finding in report.findings] == []
    assert report.dropped
    assert report.outcome is not None and report.outcome.trace.samples[0].mlp_stages


def test_check_covers_such_a_method() -> None:
    result = check_all(Thinning, families=("llava",), backends=("sdpa",))
    assert result.findings == [] and result.runs


def outcome_of(methods: str) -> tuple[Any, Outcome, list[TokenReducer]]:
    reducers, case = reducers_of(methods), tiny_case("llava", "left", layers=LAYERS)
    return case, run(case, [watch(reducer, number) for number, reducer in enumerate(reducers)]), reducers


def merged_after_the_layer(outcome: Outcome) -> None:
    """As if the MLP had still seen the tokens that were not merged."""
    for calls in outcome.inside:
        for call in calls:
            if call.layer == 2:
                assert isinstance(call.result, Reduction)
                call.result.features.copy_(call.features[call.result.anchors])


def came_back(outcome: Outcome) -> None:
    sample = outcome.trace.samples[0]
    layer, rows = sample.mlp_stages[0]
    sample.mlp_stages[0] = (layer, sample.rows(-1))
    assert layer == 0 and len(rows) < len(sample.rows(-1))


def left_later(outcome: Outcome) -> None:
    for sample in outcome.trace.samples:
        sample.mlp_stages = sample.mlp_stages[1:]


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (merged_after_the_layer, lambda case, outcome, reducers: check_logits(case, outcome, reducers)),
        (came_back, lambda case, outcome, reducers: check_structure(case, outcome)),
        (left_later, lambda case, outcome, reducers: check_promises(case, outcome, reducers)),
    ],
)
def test_damage_inside_a_layer_is_found(damage: Callable[[Outcome], None], check: Callable[..., Any]) -> None:
    case, outcome, reducers = outcome_of("folding" if damage is merged_after_the_layer else "thinning")
    assert list(check(case, outcome, reducers)) == []
    damaged = copy.deepcopy(outcome)
    damage(damaged)
    assert list(check(case, damaged, reducers))


@pytest.mark.parametrize("methods", ["thinning", "folding", "fastv:K=4+thinning"])
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "gemma3", "qwen3-vl-moe"])
def test_counted_is_computed(family: str, methods: str) -> None:
    model, reducers = tiny_model(family, layers=LAYERS), reducers_of(methods)
    inputs = {name: value for name, value in tiny_inputs(model, "single").items() if name != "token_type_ids"}
    counted = count(model, inputs, reducers)
    assert counted.trace is not None
    architecture, pipeline = architecture_of(model), Pipeline(tuple(reducers))
    sample = counted.trace.samples[0]
    workload = workload_of(sample, architecture.decoder, recorded="folding" in methods)
    grids = [grid for source in sample.sources for grid in source.grids] if architecture.vision.window else None
    cost = price(architecture, workload, pipeline, head_positions="all", grids=grids)
    assert list(cost.tokens) == counted.trace.tokens()
    assert list(cost.mlp_tokens) == counted.trace.mlp_tokens()
    assert any(left < seen for left, seen in zip(cost.mlp_tokens, cost.tokens, strict=True))
    assert counted.flops == cost.flops == price_trace(counted.trace, architecture, pipeline, head_positions="all").flops
    assert counted.method == cost.part("method").flops
    assert counted.module("model.language_model") == sum(part.flops for part in cost.layers)


def test_the_trace_says_where_each_token_left(tmp_path: Any) -> None:
    _, outcome, _ = outcome_of("thinning+fastv:K=4,R=0.7")
    sample = outcome.trace.samples[0]
    left: dict[tuple[int, str], int] = {}
    for point in sample.exits().values():
        left[point] = left.get(point, 0) + 1
    assert list(left.items()) == [
        ((-1, "attention"), 7),
        ((0, "attention"), 7),
        ((3, "attention"), 8),
        ((3, "layer"), 3),
        ((LAYERS - 1, "attention"), 4),
    ]
    assert outcome.trace.visual_tokens() == [29, 22, 22, 22, 11, 11, 11, 11]
    assert outcome.trace.mlp_visual_tokens() == [22, 22, 22, 14, 11, 11, 11, 7]
    assert all(sample.visual[row] for row in sample.exits())
    outcome.trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == outcome.trace


@dataclass
class Watching(Thinning):
    """Looks at what only some places have."""

    name: ClassVar[str] = "watching"
    place: int = -1
    signal: str = "attention"

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        return {self.place: entered - 1}

    def score(self, layer: DecoderLayer) -> torch.Tensor:
        return getattr(layer, self.signal)("last")[:, 0].mean(0)


@pytest.mark.parametrize(
    ("place", "signal", "message"),
    [(-1, "attention", "Before layer 0 no layer has"), (LAYERS - 1, "next_attention", "is the last one")],
)
def test_signals_that_are_not_there_are_refused(place: int, signal: str, message: str) -> None:
    case = tiny_case("llava", "single", layers=LAYERS)
    with (
        pytest.raises(UnsupportedError, match=message),
        tokenzoo.apply(case.model, [Watching(place=place, signal=signal)]),
        torch.no_grad(),
    ):
        case.model(**case.inputs)


@pytest.mark.parametrize("place", [-2, LAYERS])
def test_places_outside_the_decoder_are_refused(place: int) -> None:
    with pytest.raises(UserError, match="would act after layer"):
        Watching(place=place).layers(LAYERS)


def test_a_layer_of_other_parts_is_refused_by_name() -> None:
    model = tiny_model("llava", layers=LAYERS)
    model.model.language_model.layers[0].post_mlp_layernorm = nn.Identity().eval()
    message = "Family 'llava' does not say where the MLP half of LlamaDecoderLayer begins"
    with pytest.raises(UnsupportedError, match=message), tokenzoo.apply(model, [Thinning()]):
        pass
    with tokenzoo.apply(model, "fastv:K=1"):
        pass


@dataclass
class Placing(TokenReducer):
    """Keeps every third token; the places that it was told are kept in a list of the test."""

    name: ClassVar[str] = "placing"

    def kept(self, entered: int, layers: int) -> dict[int, None]:
        return {1: None, 2: None}

    def pick(self, layer: DecoderLayer, count: int | None) -> torch.Tensor:
        SEEN.append(layer.places())
        return torch.arange(0, len(layer.visual), 3)


SEEN: list[Any] = []


def places_in(family: str, case: str, before: str = "") -> Any:
    SEEN.clear()
    tiny = tiny_case(family, case, layers=LAYERS)
    with tokenzoo.apply(tiny.model, [*(load_zoo((), ()).build(before).reducers if before else ()), Placing()]), torch.no_grad():
        tiny.model(**tiny.inputs)
    return SEEN


def test_a_method_is_told_where_tokens_stand() -> None:
    first, second = places_in("qwen2.5-vl", "mixed")[0], places_in("qwen2.5-vl", "mixed")[2]
    grid = tiny_case("qwen2.5-vl", "mixed", layers=LAYERS).inputs
    frames, patches = int(grid["video_grid_thw"][0, 0]), int(grid["video_grid_thw"][0, 1:].prod()) // 4
    image = int(grid["image_grid_thw"][0].prod()) // 4
    assert sorted(first.kinds) == ["image", "video"]
    video = first.source == first.kinds.index("video")
    assert first.view[video].tolist() == [frame for frame in range(frames) for _ in range(patches)]
    assert first.patch[video].tolist() == list(range(patches)) * frames
    assert first.patch[~video].tolist() == list(range(image)) and not first.view[~video].any()
    assert torch.equal(second.patch, first.patch[::3])


def test_structural_tokens_and_tokens_left_before_the_llm_have_places() -> None:
    plain = places_in("llava-onevision", "video")[0]
    frames = int(plain.view.max()) + 1
    assert plain.view[-1] == -1 and plain.patch[-1] == -1 and (plain.source == 0).all()
    assert plain.patch[:-1].tolist() == [*range((len(plain.patch) - 1) // frames)] * frames
    some = places_in("llava-onevision", "video", "uniform:retention=0.5")[0]
    every = len(plain.patch) // frames
    flat = (some.view * every + some.patch)[some.view >= 0]
    assert (flat.diff() > 0).all() and len(flat) == (len(plain.patch) - 1) // 2


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_strongest_attention_is_the_sum_of_head_maxima(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    from tokenzoo.method import ops

    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    @dataclass
    class Comparing(Thinning):
        name: ClassVar[str] = "comparing"

        def kept(self, entered: int, layers: int) -> dict[int, int]:
            return {2: entered - 1}

        def score(self, layer: DecoderLayer) -> torch.Tensor:
            monkeypatch.setattr(ops, "rows_at_once", lambda heads, tokens: rows_at_once)
            found.append((layer.strongest_attention(layer.visual), layer.attention(layer.visual).amax(0).sum(0)))
            return found[-1][0]

    case = tiny_case("gemma3", "single", layers=LAYERS)
    with tokenzoo.apply(case.model, [Comparing()]), torch.no_grad():
        case.model(**case.inputs)
    torch.testing.assert_close(*found[0])
