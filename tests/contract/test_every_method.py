"""Every registered method x family x case x backend against the mask oracle (guarantees 1, 4, 5, 6)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from tiny_clip import build

import tokenzoo
from tokenzoo import UnsupportedError
from tokenzoo.testing.check import BACKENDS, check_failure, check_full_retention, check_independence, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import cases_of
from tokenzoo.testing.models import FAMILIES, MODEL_TYPES, USUAL
from tokenzoo.zoo.plugins import load_zoo

#: Deep enough for every method to act with its default parameters, which follow the depth.
LAYERS = 12
METHODS = load_zoo(plugin_files=(), registry_files=()).names()
PIPELINES = [
    "prumerge+vtw",
    "uniform+fastv:K=3",
    "fastv+pdrop",
    "aim+vtw:K=11",
    "aim:position=keep",
    "random:position=keep+pdrop",
]
RUNS = [(family, case, backend) for family in FAMILIES for case in cases_of(MODEL_TYPES[family]) for backend in BACKENDS]


def _covering(method: int, family: int) -> tuple[str, str, str]:
    """One run of a family for each method, another case and backend for the next."""
    runs = [run for run in RUNS if run[0] == FAMILIES[family]]
    return runs[(5 * method + family) % len(runs)]


def _matrix(all_of_it: list[Any], chosen: Collection[Any]) -> list[Any]:
    """Parameters of which only the `chosen` belong to the ordinary selection; the marker `matrix` selects the others."""
    return [pytest.param(*one, marks=() if one in chosen else pytest.mark.matrix) for one in all_of_it]


#: Every method on the usual families, every third one on the others, another third on the next family.
COVERING = {
    (*_covering(m if FAMILIES[f] in USUAL else m // 3, f), name)
    for m, name in enumerate(METHODS)
    for f in range(len(FAMILIES))
    if FAMILIES[f] in USUAL or (m + f) % 3 == 0
}
EACH_RUN = _matrix([(*run, method) for run in RUNS for method in METHODS], COVERING)
#: Each method on one family, another one for the next method.
ONCE = {(FAMILIES[number % len(FAMILIES)], name) for number, name in enumerate(METHODS)}
EACH_FAMILY = _matrix([(family, method) for family in FAMILIES for method in METHODS], ONCE)


@pytest.mark.parametrize(("family", "case", "backend", "method"), EACH_RUN)
def test_method(family: str, case: str, backend: str, method: str) -> None:
    report = check_case(tiny_case(family, case, backend, LAYERS), build(method))
    assert [str(finding) for finding in report.findings] == []
    assert bool(report.unsupported) == refused(family, method)
    if method == "none":
        assert not report.dropped


@pytest.mark.parametrize("method", [name for name in METHODS if build(name)[0].picture_scale == 1 and name != "none"])
def test_every_method_drops_tokens_somewhere(method: str) -> None:
    reducers = build(method)
    cases = [("llava-onevision", "video"), *((family, "single") for family in FAMILIES)]
    assert any(check_case(tiny_case(*case, layers=LAYERS), reducers).dropped for case in cases)


def refused(family: str, method: str) -> bool:
    """Whether it is refused before any call: the method says that it cannot work on such a model, or the family does."""
    try:
        with tokenzoo.apply(tiny_case(family, "single", layers=LAYERS).model, build(method)):
            return False
    except UnsupportedError:
        return True


@pytest.mark.parametrize(("family", "method"), EACH_FAMILY)
def test_a_sample_does_not_depend_on_its_batch_or_on_earlier_calls(family: str, method: str) -> None:
    if refused(family, method):
        return
    assert list(check_independence(build(method)[0], family, LAYERS)) == []


@pytest.mark.parametrize(("family", "method"), EACH_FAMILY)
def test_keeping_everything_is_the_plain_model(family: str, method: str) -> None:
    if refused(family, method):
        return
    assert list(check_full_retention(build(method)[0], family, LAYERS)) == []


@pytest.mark.parametrize(("family", "method"), EACH_FAMILY)
def test_an_interrupt_leaves_no_trace(family: str, method: str) -> None:
    if refused(family, method):
        return
    assert list(check_failure(build(method)[0], family, LAYERS)) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines(family: str, pipeline: str) -> None:
    if any(refused(family, method) for method in pipeline.split("+")):
        return
    case = "images" if family != "llava-onevision" else "video"
    report = check_case(tiny_case(family, case, layers=LAYERS), load_zoo().build(pipeline).reducers)
    assert [str(finding) for finding in report.findings] == []
    assert report.dropped
