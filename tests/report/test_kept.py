"""Which patches live on in which layers, read off a trace."""

from __future__ import annotations

import numpy as np

from tokenzoo.method.trace import EncoderTrace, SampleTrace, SourceTrace, Trace
from tokenzoo.method.workload import EncoderCut, Source
from tokenzoo.report.kept import greyed, kept_figure, own_tokens, patch_rows, stage_pictures, thinned


def trace(source, stages, rows=12):
    return Trace(4, [SampleTrace(rows, list(range(rows)), [True] * rows, [source], stages)])


def test_pruned_patches_are_gone_from_their_layer_on():
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (2, 3, 4, 5), 4, (4,))
    pictures = stage_pictures(trace(source, [(0, list(range(8))), (2, [0, 1, 3, 5, 6, 7]), (3, [0, 1, 6, 7])]))
    assert [(one.first, one.last, one.tokens) for one in pictures] == [(0, 1, 4), (2, 2, 2), (3, 3, 0)]
    assert pictures[0].views[0].all()
    assert pictures[1].views[0].tolist() == [[False, True], [False, True]]
    assert not pictures[2].views[0].any()


def test_merged_patches_live_as_long_as_what_they_went_into():
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (7, 6), 4, (2,), ((2,),), [0, 1, 0, -1])
    assert patch_rows(source).tolist() == [7, 6, 7, -1]
    first, last = stage_pictures(trace(source, [(0, list(range(12))), (1, [0, 7])]))
    assert first.views[0].tolist() == [[True, True], [True, False]]
    assert last.views[0].tolist() == [[True, False], [True, False]]


def test_caches_that_were_cut_stand_behind_the_layers():
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (2, 3, 4, 5), 4, (4,))
    recorded = trace(source, [(0, list(range(8)))])
    recorded.samples[0].cached = [([0, 1], [0, 1, 3, 5]), ([3], [0, 1, 2])]
    pictures = stage_pictures(recorded)
    assert [one.title for one in pictures] == [
        "layers 0–3: 4 tokens",
        "cache of layers 0–1: 2 tokens",
        "cache of layer 3: 1 tokens",
    ]
    assert pictures[1].views[0].tolist() == [[False, True], [False, True]]


def test_the_encoder_stands_before_the_layers():
    """Patch 1 merges into patch 0 in layer 0, patch 2 is dropped in layer 1, patch 3 merges into patch 0 in layer 4."""
    cuts = tuple(EncoderCut(layer, "attention", left) for layer, left in ((0, 3), (1, 2), (4, 1)))
    encoder = EncoderTrace(6, cuts, [-1, 0, 1, 4])
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (3,), 1, (1,), (), [0, 0, -1, 0], encoder)
    pictures = stage_pictures(trace(source, [(0, list(range(9)))]))
    titles = ["encoder layer 0: 3 tokens", "encoder layers 1–3: 2 tokens", "layers 0–3: 1 tokens"]
    assert [one.title for one in pictures] == titles
    assert [one.own[0].tolist() for one in pictures[:2]] == [[[True, False], [True, True]], [[True, False], [False, True]]]
    alive = [[[True, True], [True, True]], [[True, True], [False, True]], [[True, True], [False, True]]]
    assert [one.views[0].tolist() for one in pictures] == alive
    assert own_tokens(trace(source, [(0, list(range(9)))])).tolist() == [True, False, False, False]
    figure = kept_figure([np.zeros((8, 8, 3), np.uint8)], trace(source, [(0, list(range(9)))]), "tome")
    assert [axes.get_title() for axes in figure.axes] == titles


def test_newlines_are_no_patches():
    video = SourceTrace(Source("video", (2, 2), 1), ((1, 2), (1, 2)), (3, 4, 5, 6, 7), 4, (2, 2))
    assert patch_rows(video).tolist() == [3, 4, 5, 6]
    anyres = SourceTrace(Source("image", (1, 4), 2), ((1, 1), (2, 2)), (0, 1, 2, 3, 4, 5, 6), 5, (1, 4))
    assert patch_rows(anyres).tolist() == [0, 1, 2, 4, 5]


def test_everything_dropped_before_the_llm():
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (), 0, (0,), ((0,),), [-1] * 4)
    assert not stage_pictures(trace(source, [(0, [0, 1])]))[0].views[0].any()


def test_dropped_patches_lose_their_colour():
    picture = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    shown = greyed(picture, np.array([[True, False], [False, True]]))
    assert shown[0, 0].tolist() == [1, 0, 0] and np.ptp(shown[0, 3]) == 0 and shown[0, 3, 0] > 0.7


def test_dropped_patches_show_on_a_grey_picture():
    picture = np.full((16, 16, 3), 209, np.uint8)  # the grey that dropped patches are given
    shown = greyed(picture, np.array([[True, False], [False, True]]))
    assert np.ptp(shown[:8, :8]) == 0, "a living patch is left as it is"
    assert np.ptp(shown[:8, 8:]) > 0.3, "a dropped one is struck through"


def test_merged_patches_are_pale():
    """PruMerge drops no patch, it merges them: its picture once showed nothing."""
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (2, 3), 4, (2,), ((2,),), [0, 1, 0, 1])
    seen = Trace(4, [SampleTrace(8, [0, 1, 3, 4, 6, 7], [False] * 2 + [True] * 2 + [False] * 2, [source], [(0, list(range(6)))])])
    assert own_tokens(seen).tolist() == [False, True, True, False], "tokens stand at places 3 and 4 of 2 to 5"
    picture = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    shown = greyed(picture, np.ones((2, 2), bool), own_tokens(seen).reshape(2, 2))
    assert shown[0, 2].tolist() == [1, 0, 0] and shown[0, 0, 1] > 0.5


def test_figures_for_images_and_videos():
    image = SourceTrace(Source("image", (4,)), ((2, 2),), (2, 3, 4, 5), 4, (4,))
    stages = [(0, list(range(8))), (2, [0, 1, 3])]
    picture = np.zeros((8, 8, 3), np.uint8)
    assert len(kept_figure([picture], trace(image, stages), "image").axes) == 2
    video = SourceTrace(Source("video", (2, 2, 2)), ((1, 2),) * 3, (0, 1, 2, 3, 4, 5), 6, (2, 2, 2))
    assert len(kept_figure([picture] * 3, trace(video, stages), "video").axes) == 6


def test_many_stages_are_thinned_but_keep_their_ends():
    source = SourceTrace(Source("image", (4,)), ((2, 2),), (2, 3, 4, 5), 4, (4,))
    long = Trace(20, [SampleTrace(8, list(range(8)), [True] * 8, [source], [(layer, [2]) for layer in range(20)])])
    shown = thinned(stage_pictures(long))
    assert len(shown) == 6 and (shown[0].first, shown[-1].first) == (0, 19)
