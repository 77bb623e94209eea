"""Handing placeholders out to pictures: several in a sample, none in another, beams that share one encoding."""

from __future__ import annotations

import pytest
import torch

from tokenzoo import Source, UnsupportedError
from tokenzoo.host.family import VisualSource
from tokenzoo.host.prompt import EncodedSource, place


def encoded(*tokens: int) -> list[EncodedSource]:
    return [
        EncodedSource(VisualSource(Source("image", (count,)), torch.zeros(count, dtype=torch.long), ((1, count),), True))
        for count in tokens
    ]


def columns(placed):
    return [(source.sample, source.columns.tolist()) for source in placed]


def test_two_pictures_in_one_sample_none_in_the_next():
    mask = torch.tensor([[0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    placed = place(encoded(3, 1, 2), mask, "image")
    assert columns(placed) == [(0, [1, 2, 3]), (0, [5]), (2, [0, 1])]


def test_repeated_samples_share_their_pictures():
    sample = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    placed = place(encoded(2, 1, 2), sample.repeat_interleave(3, dim=0), "image")
    assert [sample for sample, _ in columns(placed)] == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    assert columns(placed)[:2] == [(0, [1, 2]), (0, [3])]
    assert columns(placed)[-1] == (5, [0, 1])


@pytest.mark.parametrize("count", [1, 3, 4])
def test_placeholders_that_do_not_match_are_refused(count):
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, :count] = True
    with pytest.raises(UnsupportedError, match=f"hold {count} image tokens, the images make 5"):
        place(encoded(3, 2), mask, "image")
