"""Equal budgets: every method with a knob comes within 2 % of the target, or says what is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tokenzoo import TokenReducer
from tokenzoo.cost import load_architecture, price
from tokenzoo.cost.matching import TOLERANCE, most_within
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo()
MODEL = load_architecture("llava-1.5-7b")
WORKLOAD = MODEL.image_workload()
LAYERS = MODEL.decoder.layers
METHODS = [name for name in ZOO.names() if name != "none"]


@dataclass
class Stiff(TokenReducer):
    """Has no knob."""

    name: ClassVar[str] = "stiff"


def flops(method):
    cost = price(MODEL, WORKLOAD, method, convention="llm-viewer", hardware="a100")
    return cost.flops


@pytest.mark.parametrize("share", [0.15, 0.25, 0.5])
@pytest.mark.parametrize("name", METHODS)
def test_no_method_costs_more_than_the_limit(name, share):
    method = ZOO.build(name)
    if not method.fixed_schedule:
        pytest.skip(f"{name}'s schedule depends on the picture; test_compare sets it by calibration")
    limit = share * flops(None)
    try:
        found = most_within(method, flops, limit, LAYERS)
    except UnreachableError as error:
        assert name in str(error) and "the budget is" in str(error)
        return
    assert found.cost <= limit
    assert flops(ZOO.build(str(found.method))) == pytest.approx(found.cost)  # the printed setting builds it again


@pytest.mark.parametrize("name", ["random", "uniform", "fastv", "aim"])
def test_a_fine_knob_uses_the_limit_up(name):
    limit = 0.3 * flops(None)
    assert most_within(ZOO.build(name), flops, limit, LAYERS).close_to(limit)


def test_a_coarse_knob_takes_the_nearest_setting_that_does_not_cost_more():
    limit = 0.5 * flops(None)
    found = most_within(ZOO.build("pool"), flops, limit, LAYERS)
    stride = found.method.reducers[0].stride
    assert found.cost <= limit < flops(ZOO.build(f"pool:stride={stride - 1}")) and not found.close_to(limit)


def test_a_method_without_a_knob_runs_as_it_is_where_it_fits():
    def cost(method):
        return 0.2

    found = most_within(Pipeline((Stiff(),)), cost, 0.25, LAYERS)
    assert str(found.method) == "stiff" and not found.turned
    with pytest.raises(UnreachableError, match=r"'stiff' has no retention knob. As it is it costs 0.2, the budget is 0.1"):
        most_within(Pipeline((Stiff(),)), cost, 0.1, LAYERS)


def test_two_methods_in_a_row_have_no_one_knob():
    with pytest.raises(UnreachableError, match="several knobs"):
        most_within(ZOO.build("uniform+vtw"), flops, 0.01 * flops(None), LAYERS)


def test_what_costs_least_is_named_where_nothing_fits():
    with pytest.raises(UnreachableError, match=r"Even fastv:R=.* costs .*, the budget is"):
        most_within(ZOO.build("fastv"), flops, 0.01 * flops(None), LAYERS)


def test_few_evaluations_still_come_near():
    calls = []

    def counted(method):
        calls.append(method)
        return flops(method)

    limit = 0.25 * flops(None)
    assert most_within(ZOO.build("uniform"), counted, limit, LAYERS, evaluations=12).cost >= (1 - TOLERANCE) * limit
    assert len(calls) <= 12
