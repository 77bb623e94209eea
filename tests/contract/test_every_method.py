"""Every registered method x family x case x backend against the mask oracle (guarantees 1, 4, 5, 6)."""

from __future__ import annotations

import pytest

from tokenzoo.testing.check import BACKENDS, check_failure, check_full_retention, check_independence, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import CASES, VIDEO_FAMILIES
from tokenzoo.testing.models import FAMILIES
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
VIDEO = {name.replace("_", "-").replace("qwen2-5", "qwen2.5") for name in VIDEO_FAMILIES}
RUNS = [
    (family, case, backend) for family in FAMILIES for case in CASES if case != "video" or family in VIDEO for backend in BACKENDS
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "case", "backend"), RUNS)
def test_method(family: str, case: str, backend: str, method: str) -> None:
    report = check_case(tiny_case(family, case, backend, LAYERS), load_zoo().build(method).reducers)
    assert not report.unsupported
    assert [str(finding) for finding in report.findings] == []
    assert report.dropped == (method != "none")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_does_not_depend_on_its_batch_or_on_earlier_calls(family: str, method: str) -> None:
    assert list(check_independence(load_zoo().build(method).reducers[0], family, LAYERS)) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_plain_model(family: str, method: str) -> None:
    assert list(check_full_retention(load_zoo().build(method).reducers[0], family, LAYERS)) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupt_leaves_no_trace(family: str, method: str) -> None:
    assert list(check_failure(load_zoo().build(method).reducers[0], family, LAYERS)) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines(family: str, pipeline: str) -> None:
    case = "images" if family != "llava-onevision" else "video"
    report = check_case(tiny_case(family, case, layers=LAYERS), load_zoo().build(pipeline).reducers)
    assert [str(finding) for finding in report.findings] == []
    assert report.dropped
