"""What follows from a declaration: schedules of every shipped method on random workloads."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo.method.accounting import structural_left
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import DataDependentError, UnreachableError
from tokenzoo.method.workload import Architecture, Source, Workload
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo((), ())
ARCHITECTURE = Architecture(
    "a", 64, 32, 4, 4, 128, 10, vision_hidden=32, encoder_hidden=32, encoder_layers=24, encoder_heads=4, has_cls=True
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    kind = draw(st.sampled_from(["image", "video"]))
    views = 1 if kind == "image" else draw(st.integers(1, 4))
    side = draw(st.integers(1, 12))
    return Source(kind, (side * side,) * views, draw(st.integers(0, 1)), grids=((side, side),) * views)


workloads = st.builds(
    lambda found, text: Workload(ARCHITECTURE, tuple(found), text),
    st.lists(sources(), min_size=1, max_size=3),
    st.integers(1, 50),
)


@pytest.mark.parametrize("name", ZOO.names())
@settings(max_examples=25, deadline=None)
@given(workload=workloads)
def test_a_schedule_never_grows_and_starts_at_most_at_what_came(name: str, workload: Workload) -> None:
    pipeline = ZOO.build(name)
    try:
        schedule = pipeline.schedule(workload)
    except DataDependentError:
        assert not pipeline.fixed_schedule
        return
    assert len(schedule) == ARCHITECTURE.layers and 0 <= schedule[0] <= workload.visual_tokens
    assert all(later <= earlier for earlier, later in pairwise(schedule)) and schedule[-1] >= 0


@pytest.mark.parametrize("name", ZOO.names())
@settings(max_examples=25, deadline=None)
@given(workload=workloads)
def test_retention_one_keeps_everything(name: str, workload: Workload) -> None:
    try:
        whole: Pipeline = ZOO.build(name).at_retention(1, ARCHITECTURE.layers)
    except UnreachableError:
        return
    schedule = whole.schedule(workload)
    assert schedule[0] == workload.visual_tokens
    if not (whole.reducers[0].enters and whole.reducers[0].acts_inside):  # the knob of such a method sets what enters alone
        assert schedule == [workload.visual_tokens] * ARCHITECTURE.layers


def test_newlines_that_a_reduction_before_the_projector_leaves() -> None:
    assert structural_left(Source("image", (4, 9), 3, (4, 4, 4))) == 0
    assert structural_left(Source("video", (4, 4), 1, (16, 16))) == 1
    assert structural_left(Source("image", (4,), 2)) == 2
    assert structural_left(Source("image", (4, 4), 2, (4, 4))) == 0  # a tile of as many tokens as the base
