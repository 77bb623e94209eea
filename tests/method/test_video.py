"""Where a video changes: against the definitions, tried out exhaustively."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import ops

quick = settings(max_examples=60, deadline=None)
similarities = st.lists(st.integers(-10, 10).map(lambda n: n / 10), max_size=9)


def test_frame_similarity_is_the_cosine_of_the_same_place() -> None:
    frames = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    ours = ops.frame_similarity(frames)
    for frame, place in product(range(3), range(3)):
        one, next_ = frames[frame, place].double(), frames[frame + 1, place].double()
        assert ours[frame, place].item() == pytest.approx((one @ next_ / one.norm() / next_.norm()).item(), abs=1e-6)
    assert (
        ops.frame_similarity(frames[:1]).shape == (0, 3) and ops.frame_similarity(frames[:, 0].bfloat16()).dtype == torch.float32
    )


@quick
@given(similarities, st.integers(-10, 10).map(lambda n: n / 10 + 0.05), st.integers(0, 12))
def test_segments_are_cut_where_frames_differ_most(values: list[float], threshold: float, least: int) -> None:
    segments = ops.frame_segments(torch.tensor(values), threshold, least)
    assert [frame for start, stop in segments for frame in range(start, stop)] == list(range(len(values) + 1))
    assert all(start < stop for start, stop in segments)
    cuts = {stop - 1 for _, stop in segments[:-1]}
    below = {place for place, value in enumerate(values) if value < threshold}
    assert below <= cuts and len(cuts) == max(len(below), min(max(least, 1) - 1, len(values)))
    assert all((values[cut], cut) < (values[other], other) for cut in cuts for other in set(range(len(values))) - cuts)


def gain(unchanged: torch.Tensor, windows: list[tuple[int, int]]) -> int:
    return sum(int(unchanged[start : stop - 1].all(0).sum()) * (stop - start - 1) for start, stop in windows if stop - start > 1)


@quick
@given(st.integers(0, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**16))
def test_static_windows_gain_the_most_of_all_divisions(steps: int, places: int, longest: int, seed: int) -> None:
    unchanged = torch.rand(steps, places, generator=torch.Generator().manual_seed(seed)) < 0.6
    windows = ops.static_windows(unchanged, longest)
    assert [frame for start, stop in windows for frame in range(start, stop)] == list(range(steps + 1))
    assert all(0 < stop - start <= longest for start, stop in windows)
    best = 0
    for cuts in product([False, True], repeat=steps):
        borders = [0, *(step + 1 for step, cut in enumerate(cuts) if cut), steps + 1]
        division = list(pairwise(borders))
        if all(stop - start <= longest for start, stop in division):
            best = max(best, gain(unchanged, division))
    assert gain(unchanged, windows) == best


def test_of_equally_good_windows_the_shorter_last_one_is_taken() -> None:
    assert ops.static_windows(torch.zeros(3, 2, dtype=torch.bool)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert ops.static_windows(torch.ones(3, 1, dtype=torch.bool), 2) == [(0, 2), (2, 4)]
    assert ops.static_windows(torch.zeros(0, 2, dtype=torch.bool)) == [(0, 1)]
