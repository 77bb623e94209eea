"""Tokens that leave inside the vision encoder: what leaves it, what methods behind it see, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tokenzoo_plugins.fastervlm import FasterVLM
from tokenzoo_plugins.tome import ToMe

import tokenzoo
from tokenzoo import Reduction, TokenReducer, Trace, UnsupportedError, UserError
from tokenzoo.application import family_of
from tokenzoo.cost.traces import recorded_run, workload_of
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.testing.case import fingerprint
from tokenzoo.testing.check import check_failure, check_independence, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.models import tiny_model

LAYERS = 4


@dataclass
class Largest(TokenReducer):
    """Keep the patches of greatest norm: half of them in layer 0, eight in layer 2, in descending order."""

    position: str = "keep"
    name: ClassVar[str] = "largest"

    def encoder_kept(self, patches, architecture):
        return {0: patches // 2, 2: min(8, patches // 2)}

    def encoder_pick(self, layer, count):
        return layer.hidden_states.norm(dim=-1).argsort(dim=1, descending=True)[:, :count]


@dataclass
class AsThePictureSays(TokenReducer):
    """Behind layer 1 merge as many patches into the first one as are longer than the mean; in a video the least of the frames."""

    name: ClassVar[str] = "as-the-picture-says"
    encoder_acts_after: ClassVar[str] = "layer"

    def encoder_kept(self, patches, architecture):
        return {1: None}

    def encoder_pick(self, layer, count):
        assert count is None
        norm = layer.hidden_states.norm(dim=-1)
        merged = int((norm > norm.mean(1, keepdim=True)).sum(1).min())
        order = norm.argsort(dim=1, descending=True)
        gone, stay = order[:, :merged], order[:, merged:]
        view = torch.arange(len(norm))[:, None]
        features = layer.hidden_states[view, stay].clone()
        features[:, 0] += layer.hidden_states[view, gone].sum(1)
        numbers = torch.arange(stay.shape[1]).expand_as(stay)
        assignment = torch.zeros_like(order).scatter(1, stay, numbers)
        return Reduction(features, stay, assignment)


@dataclass
class Proportional(AsThePictureSays):
    """The same, weighed by size."""

    name: ClassVar[str] = "proportional"
    proportional_attention: ClassVar[bool] = True


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["left", "images", "video", "mixed"])
@pytest.mark.parametrize("family", ["llava", "llava-onevision", "video-llava"])
@pytest.mark.parametrize(
    "methods",
    [
        [Largest()],
        [AsThePictureSays()],
        [Proportional()],
        [ToMe(r=4), Largest(), Proportional()],
        [Largest(), FasterVLM(retention=0.6)],
        [ToMe(r=2, position="keep"), FasterVLM(retention=0.6, position="renumber")],
        [ToMe(r=2), FasterVLM(retention=0.6, position="keep")],
    ],
    ids=lambda methods: "+".join(method.name for method in methods),
)
def test_every_guarantee_holds(family: str, case: str, backend: str, methods: list[TokenReducer]) -> None:
    if case in ("video", "mixed") and family == "llava":
        pytest.skip("It takes no videos.")
    if family != "llava" and {method.entry_positions for method in methods[1:]} == {"keep"}:
        pytest.skip("The kit's own account of positions knows no tiles and no CLS tokens behind a method that renumbers.")
    report = check_case(tiny_case(family, case, backend, LAYERS), methods)
    assert [str(finding) for finding in report.findings] == [] and not report.unsupported and report.dropped


def test_images_of_a_batch_may_lose_unequally_many() -> None:
    case = tiny_case("llava", "left", layers=LAYERS)
    with torch.no_grad(), tokenzoo.apply(case.model, [AsThePictureSays()]) as run:
        case.model(**case.inputs)
        samples = run.trace.samples
    left = [sample.sources[0].encoder.cuts[-1].left for sample in samples]
    assert len(set(left)) > 1 and left == [len(sample.sources[0].rows) for sample in samples]
    assert list(check_independence(AsThePictureSays(), "llava", LAYERS)) == []
    for sample in samples:
        (promised,) = {*AsThePictureSays().schedule(workload_of(sample, family_of(case.model).architecture(case.model)))}
        assert promised == len(sample.sources[0].rows) == recorded_run(sample).sources[0].encoder[0]


# --- ToMe against an encoder in float64 -----------------------------------------------------------------------------


def reference(model: Any, entering: np.ndarray, merges: Sequence[int], cls: int) -> tuple[np.ndarray, list[list[int]]]:
    """One view [rows, width] through the encoder with ToMe inside, by the paper's formulas: what is left [tokens, width] behind
    the feature layer, and the patches that each token stands for."""
    family = family_of(model)
    config = model.config.vision_config
    heads, x = config.num_attention_heads, entering
    groups = [[place] for place in range(len(x))]  # CLS counts as place 0 where there is one

    def weights(module: Any) -> tuple[np.ndarray, np.ndarray]:
        return module.weight.double().numpy(), module.bias.double().numpy()

    def linear(module: Any, states: np.ndarray) -> np.ndarray:
        weight, bias = weights(module)
        return states @ weight.T + bias

    def norm(module: Any, states: np.ndarray) -> np.ndarray:
        weight, bias = weights(module)
        centred = states - states.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps) * weight + bias

    def activation(states: np.ndarray) -> np.ndarray:
        if config.hidden_act == "quick_gelu":
            return states / (1 + np.exp(-1.702 * states))
        assert config.hidden_act == "gelu_pytorch_tanh"
        return 0.5 * states * (1 + np.tanh(np.sqrt(2 / np.pi) * (states + 0.044715 * states**3)))

    for layer, merge in zip(family.encoder_layers(model)[: family.feature_layer(model) + 1], merges, strict=True):
        inner = norm(layer.layer_norm1, x)
        attention = layer.self_attn
        q, k, v = (
            linear(module, inner).reshape(len(x), heads, -1).transpose(1, 0, 2)
            for module in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + np.log([len(group) for group in groups])
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + linear(attention.out_proj, (shares @ v).transpose(1, 0, 2).reshape(len(x), -1))
        if merge:
            metric = k.mean(0)
            metric = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
            a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
            best = {i: max((metric[i] @ metric[j], -j) for j in b) for i in a if not (cls and i == 0)}
            ranked = sorted(best, key=lambda i: -best[i][0])
            gone, alone = ranked[:merge], ranked[merge:]
            alone = sorted(alone) if cls else alone
            sums = {j: [(x[j], groups[j])] for j in b}
            for i in gone:
                sums[-best[i][1]].append((x[i], groups[i]))
            alone = [0, *alone] if cls else alone
            merged = [
                (
                    sum(state * len(own) for state, own in sums[j]) / sum(len(own) for _, own in sums[j]),
                    [place for _, own in sums[j] for place in own],
                )
                for j in b
            ]
            x = np.stack([*(x[i] for i in alone), *(state for state, _ in merged)])
            groups = [*(groups[i] for i in alone), *(own for _, own in merged)]
        x = x + linear(layer.mlp.fc2, activation(linear(layer.mlp.fc1, norm(layer.layer_norm2, x))))
    return x[cls:], [[place - cls for place in group] for group in groups[cls:]]


@pytest.mark.parametrize(
    ("method", "merges"),
    [
        (ToMe(r=4), [4, 4, 4, 4]),
        (ToMe(r=(9, 0, 5)), [9, 0, 5, 0]),
        (ToMe(r=5, inflection=-1), None),
        (ToMe(retention=0.25), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
def test_tome_is_what_the_formulas_give(family: str, method: ToMe, merges: list[int] | None) -> None:
    case = tiny_case(family, "single", layers=LAYERS)
    model, adapter = case.model, case.family
    cls = int(adapter.has_cls(model))
    depth = adapter.feature_layer(model) + 1
    patches = case.entering_views["image"].shape[1] - cls
    if merges is None:
        falling = [10, 5, 0] if depth == 3 else [10, 6, 3, 0]
        merges = falling if method.retention is None else [9, 9, 9] if depth == 3 else [7, 7, 7, 6]
    seen: list[torch.Tensor] = []
    with torch.no_grad(), tokenzoo.apply(model, [method]) as run:
        handle = adapter.projector(model).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
        model(**case.inputs)
        source = run.trace.samples[0].sources[0]
    handle.remove()
    left = 0
    for number, view in enumerate(case.entering_views["image"]):
        features, groups = reference(model, view.double().numpy(), merges[:depth], cls)
        got = seen[0][left : left + len(features)].numpy()
        assert np.abs(got - features).max() < 1e-4
        rows = source.assignment[number * patches : (number + 1) * patches]
        for token, group in enumerate(groups):
            assert [place for place in range(patches) if rows[place] == left + token] == sorted(group)
        left += len(features)
    assert left == len(seen[0]) == source.projected


# --- behind it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
def test_signals_of_the_encoder_are_the_reduced_encoders_own(family: str) -> None:
    """Eager attention tells its weights: what a method behind ToMe reads are those, in the order of the tokens that it has."""
    case = tiny_case(family, "single", "eager", LAYERS)
    model, adapter = case.model, case.family
    last, cls = len(adapter.encoder_layers(model)) - 1, int(adapter.has_cls(model))
    wanted: list[Any] = []
    read: list[Any] = []

    @dataclass
    class Reader(TokenReducer):
        name: ClassVar[str] = "reader"

        def early(self, source, architecture):
            return True

        def encoder_layers(self, architecture):
            return (1, last)

        def left(self, views, source, architecture):
            return [count - 1 for count in views]

        def reduce(self, tokens):
            queries = "cls" if cls else "all"
            read.extend(tokens.encoder_attention(layer, queries) for layer in (1, last))
            read.extend([tokens.encoder_features(1), tokens.encoder_keys(last)])
            return torch.cat([view[1:] for view in tokens.views()])

    stack = adapter.encoder_layers(model)
    handles = [stack[layer].self_attn.register_forward_hook(lambda m, a, output: wanted.append(output[1])) for layer in (1, last)]
    keys: list[torch.Tensor] = []
    handles.append(stack[last].self_attn.k_proj.register_forward_hook(lambda m, a, output: keys.append(output)))
    try:
        with torch.no_grad(), tokenzoo.apply(model, [ToMe(r=(4, 4)), Reader()]):
            model(**case.inputs)
    finally:
        for handle in handles:
            handle.remove()
    first, final = ((w[:, :, 0] if cls else w.mean(2))[..., cls:].transpose(0, 1).flatten(1) for w in wanted)
    assert first.shape[1] > final.shape[1] == read[1].shape[1] == read[0].shape[1]
    assert torch.allclose(read[1], final, atol=1e-6)  # nothing left behind layer 1, so tokens stand as they stood there
    heads = keys[0].unflatten(-1, (adapter.encoder_heads(model), -1)).mean(2)
    assert torch.allclose(read[3], heads[:, cls:].flatten(0, 1), atol=1e-6)
    stood = sorted(set(read[0][0].tolist()))
    assert all(any(abs(value - other) < 1e-6 for other in first[0].tolist()) for value in stood)
    assert len(read[2]) == final.shape[1]


def test_keys_behind_a_layer_that_merged_are_the_anchors() -> None:
    case = tiny_case("llava", "single", layers=LAYERS)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def pick(self: Any, layer: Any, count: int) -> torch.Tensor:
        seen.append((layer.keys(), layer.sizes))
        return torch.arange(count).expand(len(layer.sizes), -1)

    behind = changed(encoder_acts_after="layer", encoder_kept=lambda self, patches, a: {0: 8}, encoder_pick=pick)
    keys: list[torch.Tensor] = []
    with torch.no_grad(), tokenzoo.apply(case.model, [ToMe(r=(4,)), behind]):
        stack = case.family.encoder_layers(case.model)
        handle = stack[0].self_attn.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
        case.model(**case.inputs)
        handle.remove()
    (got, sizes), heads = seen[0], case.family.encoder_heads(case.model)
    own = keys[0].unflatten(-1, (heads, -1)).mean(2)[0, 1:]
    even = own[::2]  # B, which stands behind what is left of A
    assert got.shape[:2] == (1, 32) and sizes.sum().item() == 36 and torch.equal(got[0, 14:], even)
    assert all(any(torch.equal(key, other) for other in own[1::2]) for key in got[0, :14])


def test_the_trace_says_in_which_layer_a_patch_left(tmp_path: Path) -> None:
    case = tiny_case("llava", "single", layers=LAYERS)
    with torch.no_grad(), tokenzoo.apply(case.model, [Largest()]) as run:
        case.model(**case.inputs)
        trace = run.trace
    encoder = trace.samples[0].sources[0].encoder
    assert encoder.layers == 4 and [tuple(cut) for cut in encoder.cuts] == [(0, "attention", 18), (2, "attention", 8)]
    assert [encoder.left_in.count(layer) for layer in (0, 1, 2, -1)] == [18, 0, 10, 8]
    assignment = trace.samples[0].sources[0].assignment
    assert [left < 0 for left in encoder.left_in] == [row >= 0 for row in assignment]
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace


def test_nothing_to_merge_is_the_plain_model_and_none_has_no_hook() -> None:
    case = tiny_case("llava", "single", layers=LAYERS)
    for method, hooked in ((ToMe(r=0), True), (tokenzoo.zoo.plugins.load_zoo().build("none").reducers[0], False)):
        with torch.no_grad(), tokenzoo.apply(case.model, [method]) as run:
            layers = case.family.encoder_layers(case.model)
            assert bool(layers[0].layer_norm2._forward_pre_hooks) == hooked
            assert torch.equal(case.model(**case.inputs).logits, case.prompt.logits)
            assert run.trace.samples[0].sources[0].assignment is None
    assert fingerprint(case.model) == case.before
    assert list(check_failure(ToMe(), "llava", LAYERS)) == []


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "internvl", "gemma3", "smolvlm", "idefics2", "llava-next-video"])
def test_encoders_whose_patches_are_joined_are_refused_by_name(family: str) -> None:
    model = tiny_model(family, layers=2)
    named = model.config.model_type if family != "idefics2" else "Idefics2"
    with pytest.raises(UnsupportedError, match=named) as error, tokenzoo.apply(model, [ToMe()]):
        pass
    assert "Take a method that" in str(error.value) and "\n" not in str(error.value)


def test_what_else_is_refused() -> None:
    model = tiny_model("llava", layers=2)
    inputs = tiny_case("llava", "single", layers=LAYERS).inputs
    whole = pytest.raises(UnsupportedError, match=r"'prumerge' needs whole views.*inside the encoder")
    with whole, torch.no_grad(), tokenzoo.apply(model, "prumerge+tome"):
        model(**inputs)
    model.config.vision_config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="'flash_attention_2' attention does not take"), tokenzoo.apply(model, "tome"):
        pass
    model.config.vision_config._attn_implementation = "sdpa"
    model.config.vision_feature_layer = [1, 2]
    with pytest.raises(UnsupportedError, match="features of several"), tokenzoo.apply(model, "tome"):
        pass
    decoder = tokenzoo.apply(model.model.language_model, "tome", visual=[(0, 4)])
    with pytest.raises(UnsupportedError, match="'tome' acts in the vision encoder"), decoder:
        pass


def changed(**members: Any) -> TokenReducer:
    return type("Changed", (Largest,), members)()


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        (changed(encoder_kept=lambda self, patches, a: {3: 4}), UserError, "encoder layer 3.*behind layer 2"),
        (changed(encoder_kept=lambda self, patches, a: {0: 0}), UserError, "one must remain"),
        (changed(encoder_pick=lambda self, layer, n: torch.arange(n)), InvalidReductionError, r"\[1 views, kept\]"),
        (
            changed(encoder_pick=lambda self, layer, n: torch.arange(n - 1)[None]),
            InvalidReductionError,
            "declared 18 .* returned 17",
        ),
        (changed(encoder_pick=lambda self, layer, n: torch.zeros(1, n).long()), InvalidReductionError, "kept twice"),
        (changed(encoder_pick=lambda self, layer, n: 40 + torch.arange(n)[None]), InvalidReductionError, "out of range"),
        (
            changed(
                encoder_pick=lambda self, layer, n: Reduction(
                    layer.hidden_states[:, :n], torch.arange(n)[None], torch.full((1, layer.tokens), n)
                )
            ),
            InvalidReductionError,
            "one of the 18 outputs",
        ),
    ],
)
def test_a_faulty_method_fails_in_its_own_name(method: TokenReducer, error: type[Exception], words: str) -> None:
    case = tiny_case("llava", "single", layers=LAYERS)
    with pytest.raises(error, match=f"'largest.*{words}"), torch.no_grad(), tokenzoo.apply(case.model, [method]):
        case.model(**case.inputs)


def test_the_check_finds_a_method_that_writes_into_the_encoder() -> None:
    def pick(self: Any, layer: Any, count: int) -> torch.Tensor:
        layer.hidden_states[:, 0] = 0.0
        return torch.arange(count).expand(len(layer.hidden_states), -1)

    report = check_case(tiny_case("llava", "single", layers=LAYERS), [changed(encoder_pick=pick)])
    assert any(
        "encoder_pick (layer 0) changed its input in place (hidden_states)" in finding.message for finding in report.findings
    )


def test_the_oracle_finds_an_encoder_that_does_not_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenzoo.host.encoder_reduction import EncoderReduction

    monkeypatch.setattr(EncoderReduction, "_weights", lambda self, hidden: None)  # proportional attention forgotten
    report = check_case(tiny_case("llava", "single", layers=LAYERS), [ToMe(r=4)])
    assert any("inside or behind the encoder" in finding.message for finding in report.findings)
