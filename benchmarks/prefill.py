"""Prefill speed of every method on a Qwen2-0.5B-shaped decoder with random weights (24 layers x 896).

    python benchmarks/prefill.py [--visual 1568 3136] [--rounds 7] [--methods aim fastv ...] [--dtype bfloat16]
    python benchmarks/prefill.py --own [--minutes 30] [--methods ...]

bfloat16 is what large models are timed in, where the processor multiplies it natively (AVX512-BF16, AMX). On one that
emulates it (AVX2: 8 times slower than float32) the default run takes an hour; --dtype float32 tells more there.
README.md beside this file has what was reached.

Prints, for each method: its prefill time as a ratio to `none` (the median over interleaved rounds; each ratio is taken
within a round, so that drift of the machine hits both alike), the ratio of FLOPs under `exact`, measured speed-up over
the speed-up the FLOPs promise, the method's own share of its time, and the peak memory beside `none`'s. "raw model" is
the model without tokenzoo. Then PageRank alone over 9408 tokens x 28 heads: the memory it adds. Visual tokens come as
frames of 196, each a span of its own. Nothing here is comparable between machines but the ratios.

--own asks for one thing of every registered method: its own share of a prefill, in processor time, so that it can be told on a
busy machine. The model is LLaVA-OneVision's shape around the same decoder, so that methods which read the encoder run too: 8
frames, SigLIP's width and heads, but two encoder layers without their MLP. A true encoder takes longer, so shares of such methods
are upper bounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, Qwen2Model, SiglipVisionConfig

import tokenzoo
from tokenzoo.bench.memory import peak_bytes
from tokenzoo.bench.timing import environment, milliseconds, processor_milliseconds, watch_hooks
from tokenzoo.cost import architecture_of, price_trace
from tokenzoo.errors import UserError
from tokenzoo.method import ops
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.testing.inputs import Words
from tokenzoo.zoo.plugins import load_zoo

TEXT, FRAME, LAYERS, HIDDEN = 64, 196, 24, 896
CPU = torch.device("cpu")
#: The published settings, with layers at the same depth of 24; before-projector methods have nothing to do here.
METHODS = (
    "none",
    "random:retention=0.25",
    "uniform:retention=0.25",
    "pool:stride=2",
    "aim:retention=0.25",
    "fastv:K=2,R=0.5",
    "pdrop:layer_list=[5,11,17]",
    "vtw:K=12",
)


def decoder_config() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=1024,
        hidden_size=HIDDEN,
        intermediate_size=4864,
        num_hidden_layers=LAYERS,
        num_attention_heads=14,
        num_key_value_heads=2,
    )


def decoder(dtype: torch.dtype) -> Qwen2Model:
    """Qwen2-0.5B's decoder with random weights."""
    torch.manual_seed(0)
    return Qwen2Model(decoder_config()).to(dtype).eval()


def measure(model: Qwen2Model, visual: int, names: list[str], rounds: int) -> Table:
    """Time the raw model and every method in turn, `rounds` times after one warm-up."""
    zoo, embeddings = load_zoo(), torch.randn(1, TEXT + visual, HIDDEN).to(model.dtype)
    spans = [[(TEXT // 2 + first, TEXT // 2 + first + FRAME) for first in range(0, visual, FRAME)]]
    methods = {name: zoo.build(name) for name in names}

    def prefill() -> None:
        with torch.inference_mode():
            model(inputs_embeds=embeddings, use_cache=True)

    times: dict[str, list[float]] = {name: [] for name in ("raw model", *methods)}
    own: dict[str, list[float]] = {name: [] for name in methods}
    flops: dict[str, int] = {}
    peaks: dict[str, int] = {}
    for name, method in methods.items():
        with tokenzoo.apply(model, method, visual=spans) as run:
            peaks[name] = peak_bytes(prefill, CPU) or 0
            cost = price_trace(run.trace, architecture_of(model), method, convention="exact")
        flops[name] = cost.flops
    for _ in range(rounds):
        times["raw model"].append(milliseconds(prefill, CPU))
        for name, method in methods.items():
            watched, spent = watch_hooks(method, CPU)
            with tokenzoo.apply(model, watched, visual=spans):
                times[name].append(milliseconds(prefill, CPU))
            own[name].append(sum(spent))
    return table(visual, times, own, flops, peaks)


def table(
    visual: int, times: dict[str, list[float]], own: dict[str, list[float]], flops: dict[str, int], peaks: dict[str, int]
) -> Table:
    """One row per method; every ratio is the median of the rounds' ratios."""
    rows = Table(title=f"{visual} visual + {TEXT} text tokens, medians of {len(times['none'])} interleaved rounds")
    for heading in ("method", "time / none", "FLOPs / none", "speed-up / promised", "own share", "peak MB", "ms"):
        rows.add_column(heading, justify="left" if heading == "method" else "right")
    for name, taken in times.items():
        ratio = statistics.median(mine / base for mine, base in zip(taken, times["none"], strict=True))
        cells = [name, f"{ratio:.3f}"]
        if name in flops:
            work = flops[name] / flops["none"]
            share = statistics.median(spent / mine for spent, mine in zip(own[name], taken, strict=True))
            cells += [f"{work:.3f}", f"{work / ratio:.2f}", f"{share:.1%}", f"{peaks[name] / 1e6:.0f}"]
        else:
            cells += ["", "", "", ""]
        rows.add_row(*cells, f"{statistics.median(taken):.0f}")
    return rows


def pagerank_memory(tokens: int = 9408, heads: int = 28, kv_heads: int = 4, head_dim: int = 128) -> str:
    """Peak memory of AIM's scores at Qwen2-7B's shape, 192 frames merged to 49 tokens each."""
    query = torch.randn(heads, tokens, head_dim).to(torch.bfloat16)
    key = torch.randn(kv_heads, tokens, head_dim).to(torch.bfloat16)
    added: list[int] = []
    taken = milliseconds(lambda: added.append(peak_bytes(lambda: ops.pagerank(query, key, head_dim**-0.5), CPU) or 0), CPU)
    return f"PageRank over {tokens} tokens x {heads} heads adds {added[0] / 1e9:.3f} GB at its peak ({taken / 1e3:.1f} s)"


def own_shares(names: list[str], dtype: torch.dtype, minutes: float) -> Table:
    """Each method's own share of one prefill of 8 frames, in processor time, beside its share of the FLOPs."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=8, num_hidden_layers=2, num_attention_heads=16, image_size=384, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=decoder_config(),
        image_token_index=1020,
        video_token_index=1021,
        vision_feature_layer=-1,
    )
    model = LlavaOnevisionForConditionalGeneration(config).to(dtype).eval()
    frames = 8
    ids = torch.full((1, TEXT + frames * FRAME + 1), 5)
    ids[:, TEXT // 2 : TEXT // 2 + frames * FRAME + 1] = 1021
    pixels = torch.randn(1, frames, 3, 384, 384).to(dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    words = {"questions": ["what is shown in the picture"], "tokenizer": Words()}
    rows = Table(title=f"own work: {frames * FRAME} visual + {TEXT} text tokens, processor time of one prefill", box=box.MARKDOWN)
    for heading in ("method", "own share", "own FLOPs", "own s", "prefill s"):
        rows.add_column(heading, justify="left" if heading == "method" else "right")
    end = time.monotonic() + 60 * minutes
    for name in names:
        if time.monotonic() > end:
            rows.add_row(name, "no time")
            continue
        try:
            method = load_zoo().build(name)
            watched, spent = watch_hooks(method, CPU, measure=processor_milliseconds)
            with torch.inference_mode(), tokenzoo.apply(model, watched, **words) as run:
                taken = processor_milliseconds(lambda: model(**inputs, use_cache=True, logits_to_keep=1))
                trace = run.trace
            own, whole = sum(spent) / 1e3, taken / 1e3
            cells = [name, f"{own / whole:.1%}", own_flops(trace, model, method), f"{own:.2f}", f"{whole:.1f}"]
        except UserError as error:
            cells = [name, f"refused: {str(error).partition('.')[0]}"]
        print(*cells, sep=" | ", flush=True)
        rows.add_row(*cells)
    return rows


def own_flops(trace: Any, model: Any, method: Any) -> str:
    """A method's products as a share of all; where the picture decides what they are, they are not counted."""
    try:
        cost = price_trace(trace, architecture_of(model), method, convention="exact")
    except (UserError, DataDependentError):
        return "–"
    return f"{cost.part('method').flops / cost.flops:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visual", type=int, nargs="+", default=[1568, 3136])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--own", action="store_true", help="each method's own share of one prefill, in processor time")
    parser.add_argument("--minutes", type=float, default=30, help="with --own: begin no method after this (30)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    console = Console(width=120)
    if options.own:
        everything = load_zoo().names()
        seed = [name for name in everything if name in {method.partition(":")[0] for method in METHODS}]
        names = options.methods or [*seed, *(name for name in everything if name not in seed)]
        console.print(environment(), own_shares(names, getattr(torch, options.dtype), options.minutes))
        return
    model = decoder(getattr(torch, options.dtype))
    console.print(environment(model))
    names = ["none", *[name for name in options.methods or METHODS if name != "none"]]
    for visual in options.visual:
        console.print(measure(model, visual, names, options.rounds))
    console.print(pagerank_memory())


if __name__ == "__main__":
    main()
