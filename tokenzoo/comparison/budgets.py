"""A budget on one model: what a method costs there, and what the unreduced model does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tokenzoo.comparison import cells
from tokenzoo.comparison.amounts import Amount
from tokenzoo.comparison.plan import SectionPlan
from tokenzoo.cost import Cost, architecture_of, price, price_trace, workload_of
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.workload import Architecture
from tokenzoo.numbers import percent, si

#: Questions that a data-dependent method is set by, how many settings are tried on them at most, and the share of the budget
#: that may be left unused.
CALIBRATION, TRIALS, NEAR = 24, 12, 5e-3

Calibrate = Callable[[Pipeline], dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """What all rows may cost on the model that is measured: at most `limit`, the unreduced model costing `unreduced`."""

    amount: Amount
    cost: Callable[[Pipeline], float]
    unreduced: float
    architecture: Architecture

    @property
    def limit(self) -> float:
        return self.amount.of(self.unreduced)

    def describe(self, cost: float) -> str:
        """A cost as a share of the unreduced model's, or as a number where the budget is one."""
        share = percent(cost / self.unreduced)
        return share if self.amount.share else f"{si(cost)} {self.amount.unit} ({share})"


def budget_of(amount: Amount, plan: SectionPlan, unreduced: dict[str, Any], calibrate: Calibrate, convention: str) -> Budget:
    """The budget on this section's model; `unreduced` is the accuracy cell of `none`, whose prompt is priced.

    FLOPs and tokens are counted as rows show them. `calibrate` gives the cell of a data-dependent method on a few questions.
    """
    architecture = architecture_of(plan.checkpoint.model)
    workload = workload_of(cells.read_trace(unreduced).samples[0], architecture.decoder, recorded=False)
    options = {"convention": convention, "hardware": amount.hardware} if amount.quantity == "ms" else {}
    pick = {"flops": _llm_flops, "tokens": _mean_tokens, "ms": _milliseconds}[amount.quantity]

    def cost(method: Pipeline) -> float:
        if method.fixed_schedule:
            with suppress(NotImplementedError):  # a method without a schedule is set by what it does
                return pick(price(architecture, workload, method, **options))
        found = calibrate(method)
        if amount.quantity == "ms":
            return pick(price_trace(cells.read_trace(found), architecture, method, sample=0, **options))
        counts = found["visual_per_layer"]
        return sum(counts) / len(counts) if amount.quantity == "tokens" else found["llm_flops"]

    return Budget(amount, cost, pick(price(architecture, workload, **options)), architecture.decoder)


def _mean_tokens(cost: Cost) -> float:
    return cost.mean_visual_tokens


def _llm_flops(cost: Cost) -> float:
    return cost.flops - cost.part("vision").flops - cost.part("projector").flops


def _milliseconds(cost: Cost) -> float:
    assert cost.seconds is not None
    return cost.seconds * 1000
