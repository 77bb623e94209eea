"""Equal budgets: every method with a knob comes within 2 % of the target, or says what is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tokenzoo import TokenReducer
from tokenzoo.cost import load_architecture, price
from tokenzoo.cost.matching import TOLERANCE, match, most_within
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo()
MODEL = load_architecture("llava-1.5-7b")
WORKLOAD = MODEL.image_workload()
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
def test_flops_are_matched_within_two_percent_or_refused(name, share):
    method = ZOO.build(name)
    if _has_knob(method) and not method.at_retention(0.5).fixed_schedule:
        pytest.skip(f"{name}'s schedule depends on the picture; test_compare matches it by calibration")
    target = share * flops(None)
    try:
        found = match(method, flops, target)
    except UnreachableError as error:
        assert "nearest is" in str(error) or "retention" in str(error)
        if "nearest is" in str(error):
            assert name in str(error)
        return
    assert abs(found.cost - target) <= TOLERANCE * target
    assert flops(ZOO.build(str(found.method))) == pytest.approx(found.cost)  # the printed setting builds it again


def _has_knob(method):
    try:
        method.at_retention(0.5)
    except UnreachableError:
        return False
    return True


@pytest.mark.parametrize("name", ["random", "uniform", "fastv", "aim"])
def test_what_must_be_reachable_is_reached(name):
    assert match(ZOO.build(name), flops, 0.3 * flops(None)).cost == pytest.approx(0.3 * flops(None), rel=TOLERANCE)


def test_a_method_without_a_knob_says_so():
    with pytest.raises(UnreachableError, match="'stiff' has no retention knob"):
        match(Pipeline((Stiff(),)), flops, 0.25 * flops(None))


def test_two_methods_in_a_row_have_no_one_knob():
    with pytest.raises(UnreachableError, match="several knobs"):
        match(ZOO.build("uniform+vtw"), flops, 0.25 * flops(None))


def test_the_nearest_setting_is_named_where_the_target_is_out_of_reach():
    with pytest.raises(UnreachableError, match=r"'fastv' cannot reach .*: the nearest is fastv:R="):
        match(ZOO.build("fastv"), flops, 0.01 * flops(None))


def test_most_within_stays_within():
    limit = 0.4 * flops(None)
    found = most_within(ZOO.build("uniform"), flops, limit)
    assert 0.98 * limit <= found.cost <= limit


def test_few_evaluations_still_come_near():
    calls = []

    def counted(method):
        calls.append(method)
        return flops(method)

    match(ZOO.build("uniform"), counted, 0.25 * flops(None), evaluations=12)
    assert len(calls) <= 12
