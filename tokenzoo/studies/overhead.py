"""Finding 2 of the paper: what the method itself costs is negligible."""

from __future__ import annotations

from typing import Any

import torch

from tokenzoo.bench.timing import time_methods
from tokenzoo.comparison.statistics import spread
from tokenzoo.cost import load_architecture, price, workload_of
from tokenzoo.numbers import percent, si
from tokenzoo.report.plots import COLORS, figure
from tokenzoo.studies.common import Lab, Study

METHODS = ("aim", "fastv", "pdrop", "prumerge", "vtw", "random")
#: AIM's own GFLOPs and the LLM's, as the paper prints them for Qwen2-7B with 32 frames.
PAPER_OWN, PAPER_LLM = 92.43, 14757.0
LARGE, FRAMES, ROUNDS = "qwen2-7b", 32, 7


def run(lab: Lab) -> Study:
    """Price each method's own products, here and on Qwen2-7B, and time its hooks."""
    import tokenzoo

    zoo = lab.runner.zoo
    names = [name for name in METHODS if name in zoo.names()]
    methods = {name: lab.build(name) for name in ("none", *names)}
    question = next(iter(lab.questions.values()))[0]
    inputs = lab.plan.checkpoint.inputs([question])
    lab.runner.progress.expect(ROUNDS)
    lab.runner.progress.say("timing")
    words, advance = lab.plan.checkpoint.words([question]), lab.runner.progress.advance
    timed = time_methods(
        lab.plan.checkpoint.model,
        dict.fromkeys(methods, inputs),
        methods,
        ROUNDS,
        on_round=lambda done: advance(1),
        words=dict.fromkeys(methods, words),
    )
    table: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for name in names:
        with tokenzoo.apply(lab.plan.checkpoint.model, methods[name], **words) as run, torch.inference_mode():
            lab.plan.checkpoint.model(**inputs, logits_to_keep=1)
        workload = workload_of(run.trace.samples[0], lab.architecture.decoder)
        own, llm = _split(price(lab.architecture, workload, methods[name]))
        large = _large(methods[name])
        rounds = timed[name].rounds
        milliseconds = spread([one.method_ms for one in rounds])
        share = spread([one.method_ms / one.prefill_ms for one in rounds])
        speed = spread([a.prefill_ms / b.prefill_ms for a, b in zip(rounds, timed["none"].rounds, strict=True)])
        data.append({"method": name, "own_flops": own, "llm_flops": llm, "own_ms": milliseconds.median,
                     "own_share_of_prefill": share.median, "prefill_ratio": speed.median,
                     "own_share_7b": large and large[0] / large[1]})  # fmt: skip
        table.append([
            name, si(own), percent(own / llm), f"{milliseconds.median:.2f}", percent(share.median), f"{speed.median:.2f}",
            si(large[0]) if large else "–", percent(large[0] / large[1]) if large else "–",
        ])  # fmt: skip
    aim = next(row for row in data if row["method"] == "aim")
    here = (
        f"On {lab.plan.title}, AIM's own products are {percent(aim['own_flops'] / aim['llm_flops'])} of the LLM's FLOPs and its "
        f"hooks take {percent(aim['own_share_of_prefill'])} of the prefill's time; on {LARGE} with {FRAMES} frames its products "
        f"are {percent(aim['own_share_7b'])}, computed as executed (merging per frame)."
    )
    paper = (
        f"{PAPER_OWN} of {PAPER_LLM:.0f} GFLOPs on Qwen2-7B: {percent(PAPER_OWN / PAPER_LLM)}, negligible (time is not reported)."
    )
    large_agrees, small_agrees = aim["own_share_7b"] < 0.01, aim["own_share_of_prefill"] < 0.05
    return Study(
        name="overhead",
        title=f"What the methods themselves cost ({lab.plan.title}; one prefill, {ROUNDS} interleaved rounds)",
        header=["Method", "Own FLOPs\ncomputed", "of LLM", "Own ms\nmeasured", "of prefill", "Prefill\n× none",
                f"{LARGE} own\ncomputed", "of LLM"],
        rows=table,
        here=here,
        paper=paper,
        verdict="agrees" if large_agrees and small_agrees else "partly agrees" if large_agrees else "differs",
        plot=lambda: _plot(data),
        notes=["On a model this small a few small operations outweigh their FLOPs: time is launch overhead, not arithmetic."],
        data=data,
    )  # fmt: skip


def _split(cost: Any) -> tuple[float, float]:
    """The method's own FLOPs, and those of decoder and LM head."""
    own = cost.part("method").flops
    return own, cost.flops - own - cost.part("vision").flops - cost.part("projector").flops


def _large(method: Any) -> tuple[float, float] | None:
    """The same on a 7B decoder, where the schedule is known without a picture."""
    if not method.fixed_schedule:
        return None
    model = load_architecture(LARGE)
    return _split(price(model, model.video_workload(FRAMES), method))


def _plot(data: list[dict[str, Any]]) -> Any:
    drawn, axes = figure(6.0, 3.4)
    places = range(len(data))
    axes.barh([y + 0.2 for y in places], [100 * row["own_flops"] / row["llm_flops"] for row in data], 0.36,
              color=COLORS[0], label="own FLOPs, % of the LLM's (computed)")  # fmt: skip
    axes.barh([y - 0.2 for y in places], [100 * row["own_share_of_prefill"] for row in data], 0.36,
              color=COLORS[1], label="own time, % of prefill (measured)")  # fmt: skip
    axes.axvline(100 * PAPER_OWN / PAPER_LLM, color="#888888", linestyle="--", linewidth=1, label="paper: AIM's FLOPs, Qwen2-7B")
    axes.set_yticks(list(places), [row["method"] for row in data])
    axes.invert_yaxis()
    axes.set_xlabel("%")
    axes.legend(fontsize=8, frameon=False)
    return drawn
