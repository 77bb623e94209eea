"""A closed form is there for speed alone: it says what counting says."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_clip import tiny_clip

from tokenzoo.method import own_work
from tokenzoo.method.accounting import entry_account
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.method.workload import Architecture, Source, Workload
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo((), ())
SETTINGS = [
    "aim",
    "aim:retention=0.6",
    "prumerge:mode=fixed",
    "prumerge:mode=fixed,ratio=0.4",
    "prumerge_plus:mode=fixed",
    "fastvid:version=llava-video,retention=0.3",
    "prunesid:retention=0.5",
]
APART = ("aim", "cdpruner", "prumerge", "prumerge_plus")
BEFORE = [name for name in ZOO.names() if ZOO.method(name)().enters and name not in APART]
INSIDE = [name for name in ZOO.names() if ZOO.method(name)().implements("score_flops")]
sides = st.integers(2, 7)


def architecture(kv_heads: int, has_cls: bool) -> Architecture:
    return Architecture(
        "a", 32, 28, 4, kv_heads, 64, 10, vision_hidden=16, encoder_hidden=16, encoder_layers=4, encoder_heads=2, has_cls=has_cls
    )


@pytest.mark.parametrize("specification", SETTINGS + BEFORE)
@settings(max_examples=20, deadline=None)
@given(side=sides, views=st.integers(1, 3), text=st.integers(1, 9), has_cls=st.booleans())
def test_reduce_in_closed_form_is_what_is_counted(specification: str, side: int, views: int, text: int, has_cls: bool) -> None:
    source = Source("image" if views == 1 else "video", (side * side,) * views, grids=((side, side),) * views)
    workload = Workload(architecture(2, has_cls), (source,), text)
    method = ZOO.build(specification).reducers[0]
    try:
        account = entry_account([method], source, workload.architecture)
    except DataDependentError:
        pytest.skip("The picture decides the count, so a recorded run counts the work.")
    (step,) = account.steps
    assume(step.acts)
    known = method.reduce_flops(step.views, step.left, source, workload.architecture)
    if known is None:
        pytest.skip("It has no closed form.")
    assert known == own_work.reduce_flops(step, source, workload)


@pytest.mark.parametrize(("views", "retention"), [((12,), 0.5), ((4, 9), 0.3), ((9, 9, 9), 0.11)])
def test_cdpruners_closed_form_counts_its_text_tower_too(views: tuple[int, ...], retention: float) -> None:
    workload = Workload(architecture(2, True), (Source("image", views),), 5)
    method = ZOO.method("cdpruner")(retention=retention, text_tower=tiny_clip(16))
    (step,) = entry_account([method], workload.sources[0], workload.architecture).steps
    known = method.reduce_flops(step.views, step.left, workload.sources[0], workload.architecture)
    assert known == own_work.reduce_flops(step, workload.sources[0], workload)


@pytest.mark.parametrize("name", INSIDE)
@settings(max_examples=20, deadline=None)
@given(visual=st.integers(2, 40), text=st.integers(1, 20), kv_heads=st.sampled_from([1, 2, 4]), data=st.data())
def test_pick_in_closed_form_is_what_is_counted(name: str, visual: int, text: int, kv_heads: int, data: st.DataObject) -> None:
    after = data.draw(st.integers(1, visual - 1))
    workload = Workload.images(architecture(kv_heads, True), visual, text)
    method = ZOO.method(name)()
    (layer, *_) = method.layers(workload.architecture.layers)
    known = method.score_flops(visual + text, workload.architecture)
    assert known is not None and known == own_work.pick_flops(method, visual, ((layer, visual, after),), workload)
