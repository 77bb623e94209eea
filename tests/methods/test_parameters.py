"""Parameters, schedules and retention knobs of the shipped methods, without a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenzoo_plugins.aim import AIM
from tokenzoo_plugins.evs import EVS
from tokenzoo_plugins.fastv import FastV
from tokenzoo_plugins.hiprune import HiPrune
from tokenzoo_plugins.pdrop import PyramidDrop
from tokenzoo_plugins.pool import AveragePooling
from tokenzoo_plugins.prumerge import PruMerge
from tokenzoo_plugins.prumerge_plus import PruMergePlus
from tokenzoo_plugins.uniform import UniformSelection
from tokenzoo_plugins.visionzip import VisionZip
from tokenzoo_plugins.vtw import VisualTokensWithdrawal

from tokenzoo import Architecture, DataDependentError, Source, UnreachableError, UserError, Workload
from tokenzoo.method.workload import Recorded, RecordedSource
from tokenzoo.zoo.plugins import load_zoo

NAMES = load_zoo(plugin_files=(), registry_files=()).names()


def decoder(layers: int = 28, has_cls: bool = False) -> Architecture:
    return Architecture("tiny", 64, layers, 4, 2, 96, 100, 0, 32, 32, 4, 4, has_cls=has_cls)


views = st.one_of(
    st.tuples(st.just("image"), st.lists(st.integers(0, 6), min_size=1, max_size=4)),
    st.builds(lambda side, frames: ("video", [side] * frames), st.integers(0, 6), st.integers(1, 4)),
)
sources = st.builds(
    lambda found, structural: Source(found[0], tuple(side * side for side in found[1]), structural), views, st.integers(0, 3)
)
workloads = st.builds(
    lambda layers, has_cls, found, text: Workload(decoder(layers, has_cls), tuple(found), text),
    st.integers(3, 40),
    st.booleans(),
    st.lists(sources, max_size=3),
    st.integers(1, 9),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(workload=workloads, retention=st.sampled_from([0.25, 0.3, 0.5, 0.9, 1.0]))
def test_schedules_never_grow_and_stay_within_what_there_is(name: str, workload: Workload, retention: float) -> None:
    method = load_zoo().method(name)()
    try:
        methods = [method, method.at_retention(retention, workload.architecture.layers)]
    except UnreachableError:
        methods = [method]
    for method in methods:
        try:
            counts = method.schedule(workload)
        except DataDependentError:  # of some methods the picture decides for videos only
            assert not method.fixed_schedule and workload.sources
            continue
        assert len(counts) == workload.architecture.layers
        assert counts == sorted(counts, reverse=True) and counts[-1] >= 0
        assert counts[0] <= workload.visual_tokens
        assert method.overhead(workload) >= 0 and method.projector_tokens(workload) <= workload.projector_tokens
        inside, layers = method.acts_after == "attention", workload.architecture.layers
        assert all(-inside <= layer < layers - 1 + inside for layer in method.layers(layers))


#: Methods whose published form has no one number that says how much is kept.
UNTURNED = {"prunevid", "mustdrop"}


@pytest.mark.parametrize("name", NAMES)
def test_retention_one_keeps_everything_before_the_llm(name: str) -> None:
    try:
        method = load_zoo().method(name)().at_retention(1.0, 28)
    except UnreachableError as error:
        assert name in UNTURNED, error
        return
    workload = Workload(decoder(), (Source("image", (49,)), Source("video", (16, 16), 1)), 5)
    assert method.schedule(workload)[0] == workload.visual_tokens == 82


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("aim:l1=9,l2=9", "l2=9 must be greater than l1=9"),
        ("aim:retention=0", "greater than 0"),
        ("aim:retention=nan", "finite|number"),
        ("aim:prune_before=true,l1=0", "needs l1 >= 1"),
        ("aim:temperature=0", "greater than 0"),
        ("fastv:K=0", "greater than or equal to 1"),
        ("fastv:R=1.5", "less than or equal to 1"),
        ("fastv:rank=-1", "greater than or equal to 0"),
        ("pdrop:layer_list=[4,2,6]", "must ascend"),
        ("pdrop:layer_list=[2,4]", "2 stages, 3 ratios"),
        ("pdrop:ratios=[0.1,0.2,0.3]", "must not increase"),
        ("pdrop:position=other", "keep"),
        ("vtw:K=0", "greater than or equal to 1"),
        ("prumerge:tokens=0", "greater than or equal to 1"),
        ("prumerge:mode=loose", "adaptive"),
        ("pool:stride=0", "greater than or equal to 1"),
        ("random:seed=-1", "greater than or equal to 0"),
        ("divprune:retention=0", "greater than 0"),
        ("visionzip:contextual=1.5", "less than or equal to 1"),
        ("scope:combine=max", "multiply"),
        ("hiprune:object_layer=0", "greater than or equal to 1"),
        ("evs:rate=1", "less than 1"),
    ],
)
def test_impossible_parameters_are_one_line(specification: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_zoo().build(specification)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method", [FastV(K=9), VisualTokensWithdrawal(K=9), PyramidDrop(layer_list=(2, 4, 9)), AIM(l1=9, l2=10)], ids=str
)
def test_more_layers_than_there_are(method: object) -> None:
    with pytest.raises(UserError, match="8 layers"):
        method.schedule(Workload.images(decoder(8), 16, 4))
    with pytest.raises(UserError, match="8 layers"):
        method.layers(8)


@pytest.mark.parametrize(("layers", "l1", "l2"), [(28, 14, 22), (32, 13, 21), (24, 12, 19), (12, 6, 9), (2, 1, 2), (1, 0, 1)])
def test_aims_window_follows_the_depth(layers: int, l1: int, l2: int) -> None:
    assert AIM()._window(layers) == (l1, l2)


def test_aim_rounds_up_as_released_or_down_as_its_tables() -> None:
    shares = (0.5, 0.25, 0.125, 0.063, 0.031, 0.016)
    assert [AIM(retention=r)._target(196) for r in shares] == [98, 49, 25, 13, 7, 4]
    assert [AIM(retention=r, rounding="down")._target(196) for r in shares] == [98, 49, 24, 12, 6, 3]
    assert AIM(retention=0.4375)._removals(576) == [288, 36] and AIM(retention=0.125)._removals(576) == [288, 144, 72]
    assert AIM(retention=0.1)._target(1) == AIM(retention=0.1, rounding="down")._target(1) == 1


def test_aim_merges_each_view_and_keeps_newlines() -> None:
    image = Source("image", (9, 12), 3, (9, 9))
    video = Source("video", (5, 5), 1, (20, 20))
    workload = Workload(decoder(), (image, video), 7)
    assert AIM(retention=0.5).schedule(workload)[0] == (5 + 6 + 3) + (3 + 3 + 1)
    early = AIM(retention=0.5, merge_at="before_projector")
    assert early.schedule(workload)[0] == (5 + 5 + 0) + (10 + 10 + 1)
    assert early.projector_tokens(workload) == 30 and AIM().projector_tokens(workload) == 58


def test_aim_of_no_tokens() -> None:
    assert AIM().schedule(Workload(decoder(), (), 7)) == [0] * 28
    assert AIM().overhead(Workload(decoder(), (), 7)) == 0


def test_fastv_rounds_half_to_even() -> None:
    assert [FastV().kept(count, 8)[1] for count in (5, 7, 3)] == [2, 4, 2]
    assert FastV(K=1, R=0.8).kept(6272, 8) == {0: 1254} and FastV(K=1, rank=1248).kept(6272, 8) == {0: 1248}
    assert FastV(rank=99).schedule(Workload.images(decoder(), 5, 2)) == [5] * 28


def test_pdrop_counts_full_layers_and_takes_shares_of_what_entered() -> None:
    assert PyramidDrop().schedule(Workload.images(decoder(32), 576, 40)) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert PyramidDrop().layer_positions == "renumber" and PyramidDrop(position="keep").layer_positions == "keep"
    method = PyramidDrop().at_retention(0.5, 32)
    assert sum(method.schedule(Workload.images(decoder(32), 10_000, 40))) / 320_000 == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(UnreachableError):
        PyramidDrop().at_retention(0.2, 32)


def test_vtw_defaults_to_the_papers_depth() -> None:
    assert VisualTokensWithdrawal().schedule(Workload.images(decoder(32), 9, 1)) == [9] * 15 + [0] * 17
    assert VisualTokensWithdrawal().layers(12) == (4,) and VisualTokensWithdrawal().layers(2) == (0,)
    assert VisualTokensWithdrawal(K=8).layers(8) == ()


def test_a_prumerge_budget_is_exact_and_spread_over_frames() -> None:
    video = Workload.video(decoder(), 32, 196, 5, 729)
    assert PruMerge(tokens=1620).schedule(video)[0] == 1620
    counts = PruMerge(tokens=1620).left((729,) * 32, video.sources[0], decoder())
    assert counts == [51] * 20 + [50] * 12
    assert PruMerge(tokens=3).schedule(video)[0] == 32
    assert PruMergePlus(tokens=145).schedule(Workload.images(decoder(), 576, 5))[0] == 145
    assert PruMergePlus(mode="fixed").schedule(Workload.images(decoder(), 576, 5))[0] == 145
    assert PruMerge(mode="fixed").schedule(Workload.images(decoder(), 576, 5))[0] == 73
    assert PruMerge(tokens=1000).schedule(Workload.images(decoder(), 576, 5))[0] == 576


def test_adaptive_prumerge_is_priced_from_a_recorded_run() -> None:
    workload = Workload(decoder(), (Source("image", (9,), 1),), 4, recorded=Recorded((RecordedSource(((3,),)),), (4,)))
    assert not PruMerge().fixed_schedule and PruMerge(tokens=4).fixed_schedule
    assert PruMerge().schedule(workload)[0] == 4 and PruMerge().projector_tokens(workload) == 3


def test_a_budget_of_all_tokens_leaves_the_source_alone() -> None:
    video = Workload(decoder(), (Source("video", (4, 4), 1, (16, 16)),), 5)
    assert PruMerge(tokens=32).schedule(video)[0] == 9 and PruMerge(tokens=32).projector_tokens(video) == 32


def test_baselines_count_structural_tokens_apart() -> None:
    workload = Workload(decoder(), (Source("image", (9, 16), 3),), 5)
    assert UniformSelection(retention=0.2).schedule(workload)[0] == 5 + 3
    assert AveragePooling().schedule(workload)[0] == 4 + 4 + 3
    with pytest.raises(DataDependentError, match="12 tokens"):
        AveragePooling().schedule(Workload.images(decoder(), 12, 3))
    assert AveragePooling().at_retention(0.25, 32).stride == 2 and AveragePooling().at_retention(0.11, 32).stride == 3


def test_hiprunes_object_layer_must_be_there_and_follows_the_depth() -> None:
    with pytest.raises(UserError, match="one of them, counted from 1"):
        HiPrune(object_layer=5).check_model(decoder())
    clip, qwen = (Architecture("a", 1, 1, 1, 1, 1, 1, encoder_layers=n, has_cls=n == 24, feature_layer=n - 2) for n in (24, 32))
    assert HiPrune().encoder_layers(clip) == (8, 22) and HiPrune().encoder_layers(qwen) == (15, 30)


def test_visionzip_splits_published_budgets_as_published() -> None:
    """CLS is one of the dominant tokens: 162 + 30, 108 + 20, 54 + 10, and 27 + 5 of a tile."""
    for retention, total in ((0.3333, 192), (0.2222, 128), (0.1111, 64), (0.0556, 32)):
        method = VisionZip(retention=retention)
        assert method.left((576,), Source("image", (576,)), decoder()) == [total]
        assert round(total * method.contextual) == total * 5 / 32


def test_evs_keeps_a_whole_frame_and_leaves_images_alone() -> None:
    video = Source("video", (25,) * 20)
    assert EVS(rate=0.9).left(video.view_tokens, video, decoder()) == 49
    assert EVS(rate=0.99).left(video.view_tokens, video, decoder()) == 25
    assert EVS().left((576,), Source("image", (576,)), decoder()) == 576
