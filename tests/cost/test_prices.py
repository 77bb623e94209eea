"""What holds for every price: monotone, additive, above both bounds of the roofline; impossible numbers are refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo.commands.cost import command
from tokenzoo.cost import CONVENTIONS, load_architecture, load_hardware, price, price_tokens, price_trace
from tokenzoo.cost import hardware as hardware_module
from tokenzoo.cost.architecture import from_entry
from tokenzoo.cost.roofline import time_operation
from tokenzoo.errors import UserError
from tokenzoo.method.trace import SampleTrace, SourceTrace, Trace
from tokenzoo.method.workload import Source
from tokenzoo.zoo.plugins import load_zoo

MODEL = load_architecture("llava-onevision-0.5b")
GPU = load_hardware("a100")
LAYERS = MODEL.decoder.layers
conventions = st.sampled_from(sorted(CONVENTIONS))
counts = st.lists(st.integers(0, 3000), min_size=LAYERS, max_size=LAYERS)


@settings(max_examples=40, deadline=None)
@given(conventions, counts, st.integers(0, LAYERS - 1), st.integers(1, 500))
def test_more_tokens_never_cost_less(convention: str, tokens: list[int], layer: int, more: int) -> None:
    grown = [count + more * (index == layer) for index, count in enumerate(tokens)]
    less, greater = (price_tokens(MODEL, seen, seen, convention=convention, hardware=GPU) for seen in (tokens, grown))
    assert less.flops < greater.flops
    assert less.kv_bytes < greater.kv_bytes
    if less.bytes is not None and less.seconds is not None:
        assert less.bytes < greater.bytes
        assert less.seconds <= greater.seconds


@settings(max_examples=30, deadline=None)
@given(conventions, counts)
def test_layers_add_up(convention: str, tokens: list[int]) -> None:
    cost = price_tokens(MODEL, tokens, tokens, convention=convention)
    alone = {count: price_tokens(MODEL, [count] * LAYERS, [count] * LAYERS, convention=convention) for count in tokens}
    assert [part.flops for part in cost.layers] == [alone[count].layers[0].flops for count in tokens]
    assert cost.flops == sum(part.flops for part in cost.parts)
    assert cost.kv_bytes == sum(cost.kv_bytes_per_layer)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["llm-viewer", "exact"]), counts, st.sampled_from([1, 2, 7]), st.booleans())
def test_the_roofline_is_above_both_bounds(convention: str, tokens: list[int], group: int, flash: bool) -> None:
    cost = price_tokens(
        load_architecture("llava-onevision-0.5b"), tokens, tokens, convention=convention, hardware=GPU,
        tensor_parallel=2 if group == 2 else 1, flash=flash,
    )  # fmt: skip
    assert cost.seconds is not None and cost.bytes is not None
    share = cost.tensor_parallel
    assert cost.seconds >= cost.flops / GPU.peak("float16") / share * (1 - 1e-9)
    assert cost.seconds >= cost.bytes / GPU.bandwidth / share * (1 - 1e-9)
    for part in cost.parts:
        for priced in part.operations:
            time = time_operation(priced.operation, GPU, "float16", share)
            assert priced.seconds == max(time.compute_seconds, time.memory_seconds, time.seconds)
            assert priced.bound in ("compute", "memory", "link")


def test_the_four_conventions_on_one_example() -> None:
    """LLaVA-1.5 7B, one image and 40 text tokens: the example of docs/costs.md, by hand."""
    model = load_architecture("llava-1.5-7b")
    workload = model.image_workload()
    n, d, m, layers, vocabulary = 616, 4096, 11008, 32, 32064
    flops = {name: price(model, workload, convention=name).flops for name in CONVENTIONS}
    assert flops["fastv"] == layers * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)
    assert flops["pdrop"] == layers * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)
    per_layer = 2 * n * (4 * d**2 + 3 * d * m) + 4 * n**2 * d + 5 * 32 * n**2 + 14 * d * n + 4 * d * n
    assert flops["llm-viewer"] == layers * per_layer + d * vocabulary
    language = layers * (2 * n * (4 * d**2 + 3 * d * m) + 4 * n**2 * d) + 2 * d * vocabulary
    rows, width, inner = 577, 1024, 4096
    tower = 2 * 576 * 588 * width + 24 * (2 * rows * (4 * width**2 + 2 * width * inner) + 4 * rows**2 * width)
    assert flops["exact"] == language + tower + 2 * 576 * (width * d + d * d)


def test_decoding_and_the_cache() -> None:
    model = load_architecture("qwen2-7b")
    cost = price(model, model.image_workload(tokens=100, text_tokens=10), decode=3, hardware="a100")
    one = 2 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944)
    steps = [28 * (one + 4 * 3584 * (110 + step)) + 2 * 3584 * 152064 for step in (1, 2, 3)]
    assert cost.decode is not None
    assert (cost.decode.flops, cost.decode.first_step_flops) == (sum(steps), steps[0])
    assert cost.kv_bytes == 28 * 110 * 2 * 512 * 2
    assert cost.decode.kv_bytes == 28 * 113 * 2 * 512 * 2


def test_a_mixture_of_experts_is_priced_by_its_active_experts() -> None:
    """Qwen3-VL 30B-A3B by hand: 8 of 128 experts of width 768 for each row, and their router."""
    model = load_architecture("qwen3-vl-30b-a3b")
    cost = price(model, model.image_workload(tokens=90, text_tokens=10))
    n, d, heads, kv = 100, 2048, 32 * 128, 4 * 128
    attention = 2 * n * d * (2 * heads + 2 * kv) + 4 * n**2 * heads
    assert cost.layers[0].flops == attention + 2 * n * d * (3 * 8 * 768 + 128)
    read = {priced.operation.name: priced.operation.bytes for priced in cost.layers[0].operations}
    assert read["gate"] == 2 * (128 * 768 * d + n * d + n * 8 * 768)  # 100 rows have all experts among theirs
    one = price(model, model.image_workload(tokens=0, text_tokens=1)).layers[0].operations
    assert next(priced.operation.bytes for priced in one if priced.operation.name == "gate") == 2 * (8 * 768 * d + d + 8 * 768)
    fastv = price(model, model.image_workload(tokens=90, text_tokens=10), convention="fastv")
    assert fastv.layers[0].flops == 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * 8 * 768


def test_dense_layers_of_a_mixture_of_experts() -> None:
    decoder = replace(load_architecture("qwen3-vl-30b-a3b").decoder, dense_layers=(0,))
    assert (decoder.of_layer(0).experts, decoder.of_layer(0).intermediate) == (0, 6144)
    assert (decoder.of_layer(1).experts, decoder.of_layer(1).intermediate) == (128, 8 * 768)


def test_layers_with_a_window_cache_no_more_than_it() -> None:
    """Gemma 3: layer 5 is the first that sees everything."""
    model = load_architecture("gemma3-4b")
    cost = price(model, model.image_workload(images=8, text_tokens=100), decode=1)
    row = 2 * 4 * 256 * 2
    assert cost.kv_bytes_per_layer[:6] == (*[1023 * row] * 5, 2148 * row)
    assert cost.decode is not None
    weights = 2 * 2560 * (2 * 8 * 256 + 2 * 4 * 256 + 3 * 10240)
    seen = 29 * 1024 + 5 * 2149
    assert cost.decode.flops == 34 * weights + 4 * 8 * 256 * seen + 2 * 2560 * 262208


def test_options_change_what_they_should() -> None:
    model = load_architecture("llava-onevision-7b")
    workload = model.video_workload(8)
    base = price(model, workload, hardware="a100", dtype="bf16")
    flash = price(model, workload, hardware="a100", dtype="bf16", flash=True)
    assert flash.flops == base.flops and flash.bytes < base.bytes and flash.seconds < base.seconds
    four = price(model, workload, hardware="a100", dtype="bf16", tensor_parallel=4)
    assert four.flops == base.flops and base.seconds / 4 < four.seconds < base.seconds
    assert price(model, workload, dtype="float32").kv_bytes == 2 * base.kv_bytes
    assert price(model, workload, batch=3).flops == 3 * base.flops
    assert price(model, workload, hardware="h100").seconds < base.seconds
    whole = price(model, workload, head_positions="all")
    assert whole.flops - base.flops == 2 * (base.tokens[-1] - 1) * 3584 * 152128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "llava-1.5-7"], "Did you mean 'llava-1.5-7b'"),
        (["--convention", "llmviewer"], "Did you mean 'llm-viewer'"),
        (["--hardware", "a1000"], "Did you mean 'a100'"),
        (["--dtype", "fp17"], "Unknown dtype"),
        (["--methods", "fastvv"], "Did you mean 'fastv'"),
        (["--methods", "fastv:K=99"], "K=99"),
        (["--methods", "vtw:K=99"], "K=99"),
        (["--methods", "aim:l1=5,l2=5"], "l2=5"),
        (["--methods", "aim:slope=nan"], "slope"),
        (["--methods", "prumerge"], "tokenzoo cost --trace"),
        (["--images", "10000", "--tokens", "10000000"], "visual tokens of all images"),
        (["--scale", "2"], "--trace FILE"),
        (["--tensor-parallel", "3"], "divides both"),
        (["--images", "1", "--frames", "2"], "either"),
        (["--trace", "missing.json"], "Cannot read trace"),
        (["--hardware", "v100", "--dtype", "bf16"], "no matrix units"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, UserError), result.output
    assert result.exception.exit_code == 2
    assert message in str(result.exception) and "\n" not in str(result.exception)


@pytest.mark.parametrize("value", [-1, 0, "many", math.nan, math.inf, True])
def test_impossible_hardware_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"bandwidth: .*, not"):
        hardware_module.from_entry("mine", {"flops": {"float16": 1e12}, "bandwidth": value})


def test_impossible_architectures_are_refused() -> None:
    decoder = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 3, "intermediate": 128, "vocab": 100}
    with pytest.raises(UserError, match="evenly"):
        from_entry("mine", {"decoder": decoder})
    with pytest.raises(UserError, match=r"decoder\.layers: .*greater than or equal to 1, not -2"):
        from_entry("mine", {"decoder": {**decoder, "kv_heads": 4, "layers": -2}})
    with pytest.raises(UserError, match=r"lacks decoder\.vocab"):
        from_entry("mine", {"decoder": {key: 4 for key in decoder if key != "vocab"}})
    with pytest.raises(UserError, match=r"Did you mean 'decoder\.hidden'"):
        from_entry("mine", {"decoder": {**decoder, "hiden": 4}})


def trace_of(visual: list[int], text: int) -> Trace:
    """A trace of one image whose layers see these visual tokens, after `text` text tokens."""
    total = text + visual[0]
    stages = [(layer, list(range(text + count))) for layer, count in enumerate(visual)]
    source = SourceTrace(Source("image", (visual[0],)), ((1, visual[0]),), tuple(range(text, total)), visual[0], (visual[0],))
    flags = [False] * text + [True] * visual[0]
    return Trace(len(visual), [SampleTrace(total, list(range(total)), flags, [source], stages)])


def test_a_trace_prices_as_its_schedule(tmp_path: Path) -> None:
    model = load_architecture("llava-1.5-7b")
    reducer = load_zoo().build("fastv:K=2,R=0.75")
    workload = model.image_workload(text_tokens=24)
    scheduled = price(model, workload, reducer, hardware="a100")
    trace = trace_of(list(reducer.schedule(workload)), 24)
    trace.save(tmp_path / "run.json")
    priced = price_trace(Trace.load(tmp_path / "run.json"), model, reducer, hardware="a100")
    assert (priced.flops, priced.seconds, priced.tokens) == (scheduled.flops, scheduled.seconds, scheduled.tokens)
    other = price_trace(trace, "llava-onevision-7b", scale=2, text_tokens=10, hardware="h100", convention="llm-viewer")
    assert other.visual_tokens[0] == 1152 and other.visual_tokens[-1] == 288 and other.tokens[-1] == 298
    result = CliRunner().invoke(command, ["--trace", str(tmp_path / "run.json"), "--arch", "llava-1.5-7b", "--format", "json"])
    row = json.loads(result.output)["rows"][0]
    assert row["tokens"] == list(scheduled.tokens)
    assert row["flops"] == scheduled.flops - scheduled.part("method").flops
    with pytest.raises(UserError, match="scale"):
        price_trace(trace, model, scale=math.nan)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from tokenzoo.cli import run; "
        "a = run(['cost', '--frames', '8', '--decode', '2']); b = run(['reproduce', 'aim-iccv2025', '--format', 'csv']); "
        "assert not a and not b; bad = {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
