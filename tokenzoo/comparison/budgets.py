"""The cost that `--match-…` equalises, as a function of a method's settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenzoo.comparison import cells
from tokenzoo.comparison.candidates import Budget
from tokenzoo.comparison.plan import SectionPlan
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.settings import Settings
from tokenzoo.cost import Cost, architecture_of, price, workload_of
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.question import Question

#: Questions that a data-dependent method is set by, and how often.
CALIBRATION, TRIALS = 24, 12


def check_budget(settings: Settings, plans: Sequence[SectionPlan], targets: Sequence[Target]) -> None:
    """Raise UserError, before anything is measured, where the first `--price` cannot say what `--match-…` equalises."""
    if not targets or not (settings.match_flops or settings.match_prefill_ms):
        return
    target = targets[0]
    for plan in plans:
        if not target.takes(plan.kind):
            raise UserError(f"'{target.text}' has no default for {plan.kind}s to match on. Choose --tasks or --price otherwise.")
        if settings.match_prefill_ms:
            _milliseconds(target.cost(plan.kind, None))


def budget_of(
    settings: Settings,
    plan: SectionPlan,
    targets: Sequence[Target],
    unreduced: dict[str, Any],
    questions: Sequence[Question],
) -> Budget:
    """The budget that the settings ask for on this section; `unreduced` is the accuracy cell of `none`.

    FLOPs are matched on the first architecture of `--price` under its convention, else on the model itself (LLM FLOPs,
    the method's own included); tokens always on the model itself; prefill milliseconds on the first ARCH@GPU.
    """
    if settings.match_tokens:
        name, amount, unit, pick = "tokens", settings.match_tokens, "visual tokens per layer", _mean_tokens
    elif settings.match_flops:
        name, amount, unit, pick = "flops", settings.match_flops, "FLOPs", _llm_flops
    else:
        name, amount, unit, pick = "prefill", str(settings.match_prefill_ms), "ms", _milliseconds
    if name == "tokens" or (name == "flops" and not targets):
        return _own_budget(name, amount, unit, pick, plan, unreduced, questions, settings)
    target = targets[0]

    def carried(method: Pipeline) -> float:
        trace = None
        if not method.fixed_schedule:
            trace = cells.read_trace(_calibrate(method, plan, questions, settings))
        return pick(target.cost(plan.kind, method, trace))

    layers = target.model.decoder.layers
    return Budget(name, amount, f"{unit} on {target.text}", carried, pick(target.cost(plan.kind, None)), layers)


def _own_budget(
    name: str,
    amount: str,
    unit: str,
    pick: Callable[[Cost], float],
    plan: SectionPlan,
    unreduced: dict[str, Any],
    questions: Sequence[Question],
    settings: Settings,
) -> Budget:
    architecture = architecture_of(plan.checkpoint.model)
    workload = workload_of(cells.read_trace(unreduced).samples[0], architecture.decoder, recorded=False)

    def own(method: Pipeline) -> float:
        if method.fixed_schedule:
            return pick(price(architecture, workload, method))
        found = _calibrate(method, plan, questions, settings)
        counts = found["visual_per_layer"]
        return sum(counts) / len(counts) if name == "tokens" else found["llm_flops"]

    return Budget(name, amount, unit, own, pick(price(architecture, workload)), architecture.decoder.layers)


def _calibrate(method: Pipeline, plan: SectionPlan, questions: Sequence[Question], settings: Settings) -> dict[str, Any]:
    """What a data-dependent method keeps on the first questions."""
    return cells.accuracy_cell(plan.checkpoint, method, questions[:CALIBRATION], settings.batch_size)


def _mean_tokens(cost: Cost) -> float:
    return cost.mean_visual_tokens


def _llm_flops(cost: Cost) -> float:
    return cost.flops - cost.part("vision").flops - cost.part("projector").flops


def _milliseconds(cost: Cost) -> float:
    if cost.seconds is None:
        raise UserError(f"Convention '{cost.convention}' defines no time. Use --convention llm-viewer or exact.")
    return cost.seconds * 1000
