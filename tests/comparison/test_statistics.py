"""Intervals and paired tests against known figures."""

from __future__ import annotations

import math

import pytest

from tokenzoo.comparison.statistics import paired_difference, spread, wilson


def test_wilson_interval_of_a_known_case():
    interval = wilson(45, 50)
    assert (interval.value, round(interval.low, 4), round(interval.high, 4)) == (0.9, 0.7864, 0.9565)
    assert wilson(0, 0).high == 1.0


def test_paired_difference_is_mcnemars_exact_test():
    reference = [True] * 12 + [False] * 8
    method = [False] * 7 + [True] * 6 + [False] * 7
    difference = paired_difference(method, reference)
    assert (difference.lost, difference.won, difference.value) == (7, 1, pytest.approx(-0.3))
    assert difference.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert difference.low < -0.3 < difference.high and not difference.significant


def test_the_interval_is_bonett_and_prices():
    """Bonett and Price 2012: one disagreement more of each kind, two questions more in all."""
    difference = paired_difference([True] * 10 + [False] * 35, [False] * 10 + [True] * 3 + [False] * 32)
    more, fewer = 11 / 47, 4 / 47
    reach = 1.959964 * math.sqrt((more + fewer - (more - fewer) ** 2) / 47)
    assert difference.low == pytest.approx(more - fewer - reach, abs=1e-6)
    assert difference.high == pytest.approx(more - fewer + reach, abs=1e-6)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_equal_answers_are_no_proof_of_equality(count):
    same = paired_difference([True] * count, [True] * count)
    assert (same.value, same.p_value) == (0, 1)
    assert same.low == -same.high < 0
    assert same.high < (1 if count == 1 else 0.7)


def test_unpaired_answers_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([True], [True, False])


def test_spread_is_median_and_quartiles():
    assert (spread([4, 1, 2, 3, 5]).median, spread([4, 1, 2, 3, 5]).low, spread([4, 1, 2, 3, 5]).high) == (3, 2, 4)
    assert math.isnan(spread([]).median)
