"""Several methods as one: schedules, costs and what cannot be chained."""

from __future__ import annotations

import pytest

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import DataDependentError, UnreachableError
from tokenzoo.method.workload import Architecture, Recorded, RecordedSource, Workload
from tokenzoo.zoo.plugins import load_zoo

ARCHITECTURE = Architecture("a", hidden=64, layers=32, heads=4, kv_heads=4, intermediate=128, vocab=10, has_cls=True)
IMAGE = Workload.images(ARCHITECTURE, 576, 40)


def build(specification: str) -> Pipeline:
    return load_zoo((), ()).build(specification)


def test_one_method_is_priced_as_itself() -> None:
    pipeline = build("fastv:K=2,R=0.5")
    assert pipeline.schedule(IMAGE) == [576] * 2 + [288] * 30
    assert (pipeline.name, str(pipeline)) == ("fastv", "fastv")
    assert pipeline.overhead(IMAGE) == pipeline.reducers[0].overhead(IMAGE)


def test_a_later_method_sees_what_an_earlier_one_left() -> None:
    pipeline = build("uniform:retention=0.5+fastv:R=0.5")
    assert pipeline.schedule(IMAGE) == [288] * 2 + [144] * 30
    assert str(pipeline) == "uniform:retention=0.5+fastv"


def test_what_happens_before_the_llm_happens_first_whatever_the_order() -> None:
    assert build("fastv+uniform:retention=0.5").schedule(IMAGE) == build("uniform:retention=0.5+fastv").schedule(IMAGE)


def test_inside_the_llm_the_smaller_count_holds() -> None:
    assert build("fastv+vtw:K=20").schedule(IMAGE) == [576] * 2 + [288] * 18 + [0] * 12


def test_several_images_are_reduced_one_by_one() -> None:
    two = Workload.images(ARCHITECTURE, 5, 40, images=2)
    assert build("uniform:retention=0.5+vtw:K=3").schedule(two)[0] == 2 * round(2.5)


def test_data_dependent_methods_are_priced_from_what_was_recorded() -> None:
    pipeline = build("prumerge+vtw:K=10")
    assert not pipeline.fixed_schedule
    with pytest.raises(DataDependentError):
        pipeline.schedule(IMAGE)
    recorded = Workload(ARCHITECTURE, IMAGE.sources, 40, recorded=Recorded((RecordedSource(((41,),)),), (41,)))
    assert pipeline.schedule(recorded) == [41] * 10 + [0] * 22


def test_a_second_method_before_the_llm_is_given_what_the_first_left_of_each_view() -> None:
    video = Workload.video(ARCHITECTURE, 4, 9, 40)
    assert build("pool+aim:retention=0.5,merge_at=pre_llm").schedule(video)[0] == 4 * 2
    assert build("aim:retention=0.5,merge_at=pre_llm+uniform:retention=0.5").schedule(video)[0] == 10


def test_what_a_free_choice_among_views_leaves_of_each_is_recorded() -> None:
    pipeline, video = build("random:retention=0.5+aim:retention=0.5,merge_at=pre_llm"), Workload.video(ARCHITECTURE, 2, 9, 40)
    assert not pipeline.fixed_schedule
    with pytest.raises(DataDependentError, match="chooses freely"):
        pipeline.schedule(video)
    recorded = Recorded((RecordedSource(((4, 5), (2, 3))),), (5,))
    assert pipeline.schedule(Workload(ARCHITECTURE, video.sources, 40, recorded))[0] == 2 + 3


def test_whole_views_come_first() -> None:
    with pytest.raises(UnsupportedError, match="Write it first"):
        build("uniform:retention=0.5+pool").schedule(IMAGE)


def test_each_method_is_priced_on_what_reaches_it() -> None:
    pipeline = build("fastv:K=2,R=0.5+pdrop")
    schedule, text = pipeline.schedule(IMAGE), IMAGE.text_tokens
    fastv, pdrop = pipeline.reducers
    expected = fastv.score_flops(schedule[1] + text, ARCHITECTURE)
    expected += sum(pdrop.score_flops(schedule[layer] + text, ARCHITECTURE) for layer in (15, 23))
    assert schedule == [576] * 2 + [288] * 14 + [144] * 8 + [72] * 8 and pipeline.overhead(IMAGE) == expected


def test_only_a_single_method_has_a_knob() -> None:
    assert str(build("fastv").at_retention(0.25, 32)) == "fastv:R=0.75"
    with pytest.raises(UnreachableError):
        build("fastv+vtw").at_retention(0.25, 32)


def test_a_pipeline_needs_a_method() -> None:
    with pytest.raises(UserError):
        Pipeline(())
