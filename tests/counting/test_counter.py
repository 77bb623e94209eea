"""The counter refuses what it does not know, the decode price is what a step costs, KV bytes are the cache's bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from installed import WHOLE_GEMMA4

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tokenzoo import apply  # noqa: E402
from tokenzoo.application import family_of  # noqa: E402
from tokenzoo.commands.cost import command  # noqa: E402
from tokenzoo.cost import architecture_of, load_architecture, price, price_trace  # noqa: E402
from tokenzoo.counting.counted import CUSTOM  # noqa: E402
from tokenzoo.counting.counter import FlopCounter, UncountedOperationError  # noqa: E402
from tokenzoo.counting.shape_models import count_shape  # noqa: E402
from tokenzoo.testing import tiny_inputs, tiny_model  # noqa: E402
from tokenzoo.testing.models import FAMILIES  # noqa: E402
from tokenzoo.zoo.plugins import load_zoo  # noqa: E402


class Layer(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.function(states)  # type: ignore[operator]


def products(function: object, *shape: int) -> int:
    counts = FlopCounter(Layer(function), (torch.randn(*shape),)).counts()
    return sum(value for name, value in counts[""].items() if not name.startswith("elementwise"))


def test_products_by_hand() -> None:
    weight = torch.randn(7, 5)
    assert products(lambda x: x @ weight, 3, 7) == 2 * 3 * 7 * 5
    assert products(lambda x: torch.einsum("bij,bkj->bik", x, x), 2, 3, 4) == 2 * 2 * 3 * 3 * 4
    assert products(lambda x: nn.functional.conv2d(x, torch.randn(6, 2, 3, 3), groups=2), 1, 4, 8, 8) == 2 * 6 * 36 * 18
    attention = nn.functional.scaled_dot_product_attention
    assert products(lambda x: attention(x, x, x, is_causal=True), 1, 2, 5, 4) == 2 * 2 * 2 * 5 * 5 * 4
    assert products(lambda x: x.sort().values.softmax(-1).topk(2).values, 3, 7) == 0


def test_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(UncountedOperationError, match=r"aten::(_?linalg|svd|fft)"):
        FlopCounter(Layer(torch.fft.fft), (torch.randn(4, 4),)).counts()


#: Methods that choose what stays in the KV cache, or what a decoding step reads.
ON_THE_CACHE = ["snapkv:retention=0.3", "dycoke:p=0.7", "fastv:K=2,R=0.6+snapkv:retention=0.3", "snapkv+dycoke:p=0.9,layer=2"]
KV_CASES = [
    (family, specification)
    for family in ("llava", "qwen3-vl-moe", "qwen3.5", "gemma3")
    for specification in ("none", "fastv:K=2,R=0.6", "vtw:K=3", "aim:retention=0.5,l1=2,l2=5", *ON_THE_CACHE)
    if family not in ("qwen3.5", "gemma3") or specification not in ON_THE_CACHE  # whose caches are refused
]


@pytest.mark.parametrize(("family", "specification"), KV_CASES)
def test_kv_bytes_and_a_decoding_step(family: str, specification: str) -> None:
    if (family, specification[:3]) == ("qwen3.5", "aim"):
        specification = "pdrop:layer_list=[1,4],ratios=[0.6,0.3]"  # AIM reads layers that have no attention there
    model = tiny_model(family, layers=6)
    inputs = tiny_inputs(model, "single")
    reducer = load_zoo().build(specification)
    with torch.no_grad(), apply(model, reducer) as run:
        cache = model(**inputs, use_cache=True).past_key_values
        sizes = [cached_bytes(layer) for layer in cache.layers]
        cost = price_trace(run.trace, architecture_of(model), reducer, dtype="float32", decode=1)
        assert sizes == list(cost.kv_bytes_per_layer)
        prompt = inputs["input_ids"].shape[1]
        step = {
            "input_ids": torch.tensor([[5]]),
            "attention_mask": torch.ones(1, prompt + 1, dtype=torch.long),
            "position_ids": torch.full((3, 1, 1) if "qwen" in family else (1, 1), prompt),
        }
        with FlopCounterMode(display=False, custom_mapping=CUSTOM) as mode:
            model(**step, past_key_values=cache, use_cache=True)
    assert cost.decode is not None
    assert mode.get_total_flops() == cost.decode.flops
    assert sum(map(cached_bytes, cache.layers)) == cost.decode.kv_bytes


def cached_bytes(layer: Any) -> int:
    """Of a layer's keys and values, or of its two states."""
    states = [layer.conv_states[0], layer.recurrent_states[0]] if hasattr(layer, "conv_states") else [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in states)


@pytest.mark.parametrize(
    ("name", "specification"),
    [
        ("llava-1.5-7b", "aim@image-high"),
        ("llava-onevision-7b", "fastv"),
        ("qwen2.5-vl-7b", "vtw"),
        ("smolvlm2-500m", "random:retention=0.25+fastv"),
        *(
            pytest.param("llava-1.5-7b", name, marks=pytest.mark.matrix)
            for name in ("pdrop", "fitprune", "prumerge_plus:mode=fixed")
        ),
        *(
            pytest.param(name, "random:retention=0.25+fastv", marks=pytest.mark.matrix)
            for name in ("internvl3-1b", "idefics3-8b", "idefics2-8b", "gemma3-4b", "llava-next-video-7b", "video-llava-7b")
        ),
        *(
            pytest.param(name, "random:retention=0.25+fastv:K=4", marks=pytest.mark.matrix)
            for name in ("qwen3-vl-2b", "qwen3.5-9b", "gemma4-e2b", "gemma4-26b-a4b")
        ),
    ],
)
def test_the_true_shape_without_weights(name: str, specification: str) -> None:
    model = load_architecture(name)
    if model.decoder.shared_kv_layers and not WHOLE_GEMMA4:
        pytest.skip("All rows go through the layers that share keys before transformers 5.23.")
    tokens = 64 if "qwen" in name else None  # 8 x 8 tokens are four whole attention windows of Qwen2.5-VL
    shows_video = name.startswith(("llava-onevision", "llava-next-video", "video-llava", "internvl", "smolvlm"))
    workload = model.video_workload(2) if shows_video else model.image_workload(tokens=tokens)
    reducer = load_zoo().build(specification)
    counted = count_shape(model, workload, reducer)
    cost = price(model, workload, reducer)
    assert counted.flops == counted.counted.torch_flops == cost.flops
    parts = counted.parts
    assert parts["vision"] == cost.part("vision").flops
    assert parts["projector"] == cost.part("projector").flops
    assert parts["decoder"] == sum(part.flops for part in (*cost.layers, cost.part("per-layer inputs")))
    assert parts["lm_head"] == cost.part("lm head").flops
    assert parts["method"] == cost.part("method").flops


#: Families whose configs do not say how many tokens a picture or a frame has.
ANY_SIZE = ["qwen3-vl", "qwen3.5-moe", "gemma4", "gemma4-moe"]
FIXED_SIZE = ["internvl", "smolvlm", "idefics3", "idefics2", "gemma3", "llava-next-video", "video-llava"]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.matrix if number % 3 else ())
        for number, family in enumerate([*FIXED_SIZE, *ANY_SIZE])
    ],
)
def test_a_shape_without_weights_of_each_family(family: str) -> None:
    """The class that its model_type names, its pictures as its adapter sees them; frames too where it takes them."""
    model = architecture_of(tiny_model(family, layers=6))
    tokens = 64 if family in ANY_SIZE else None
    workloads = [model.image_workload(2, tokens)]
    if model.video or (tokens and (WHOLE_GEMMA4 or "gemma4" not in family)):
        workloads.append(model.video_workload(4, tokens))
    early = [] if family == "idefics2" else ["prumerge:tokens=4"]
    for workload in workloads:
        for specification in ["none", "random:retention=0.5+fastv:K=2", *early]:
            reducer = load_zoo().build(specification)
            counted, cost = count_shape(model, workload, reducer), price(model, workload, reducer)
            parts = counted.parts
            if model.decoder.shared_kv_layers and not WHOLE_GEMMA4:
                everywhere = price(model, workload, reducer, head_positions="all")
                layers = (*everywhere.layers, everywhere.part("per-layer inputs"))
                assert parts["decoder"] == sum(part.flops for part in layers)
                continue
            assert counted.flops == counted.counted.torch_flops == cost.flops
            assert (parts["vision"], parts["projector"]) == (cost.part("vision").flops, cost.part("projector").flops)


def test_siglip_s_pooling_head_is_priced() -> None:
    """One query for each view, keys and values of all its rows, an MLP on the result."""
    model = load_architecture("llava-onevision-0.5b")
    assert model.vision is not None
    headed = model.model_copy(update={"vision": model.vision.model_copy(update={"pooling_head": True})})
    workload = model.video_workload(2)
    counted, cost, without = count_shape(headed, workload, None), price(headed, workload), price(model, workload)
    assert counted.parts["vision"] == cost.part("vision").flops > without.part("vision").flops
    assert counted.flops - cost.flops == 0 == cost.part("projector").flops - without.part("projector").flops


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_says_of_a_model_what_its_family_says(family: str) -> None:
    """Methods are priced by the one and run by the other."""
    model = tiny_model(family, layers=2)
    priced, run = (vars(found) | {"name": ""} for found in (architecture_of(model).decoder, family_of(model).architecture(model)))
    prices_alone = {"experts", "active_experts", "expert_intermediate", "dense_layers", "window", "gated_attention"}
    prices_alone |= {"beside_experts", "beside_gated", "full_head_dim", "full_kv_heads", "key_is_value"}
    seen = set(run) - prices_alone - {"wide_shared_mlp", "per_layer_width"}
    assert {name: priced[name] for name in seen} == {name: run[name] for name in seen}


def test_the_command_counts() -> None:
    arguments = ["--arch", "llava-onevision-0.5b", "--frames", "1", "--methods", "fastv", "--counted", "--format", "json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)[1]["rows"][0]
    assert row["counted"] == row["computed"] and row["difference"] == 0
