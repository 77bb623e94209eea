"""`tokenzoo recommend`: only what fits, least published loss first."""

from __future__ import annotations

import json

import pytest

from tokenzoo import UserError, cli
from tokenzoo.cost.recommend import recommend


def test_all_fit_and_known_losses_come_first_in_order():
    found = recommend("llava-onevision-7b", "a100", 100)
    assert found.kind == "video" and found.unreduced_ms > 400
    assert all(one.prefill_ms <= 100 for one in found.fitting)
    losses = [one.loss.relative for one in found.fitting if one.loss]
    assert losses == sorted(losses) and [one.loss is None for one in found.fitting[: len(losses)]] == [False] * len(losses)
    video = next(one for one in found.fitting if one.method == "aim@video")
    assert video.prefill_ms == pytest.approx(55.03, abs=0.1) and 0 < video.loss.relative < 0.01


def test_solved_settings_use_the_budget_up():
    found = recommend("llava-1.5-7b", "a100", 15)
    solved = {one.method.split(":")[0]: one for one in found.fitting if one.origin == "solved"}
    assert solved["uniform"].prefill_ms == pytest.approx(15, rel=0.02)


def test_nothing_fits_an_impossible_budget():
    found = recommend("llava-1.5-7b", "a100", 0.001)
    assert found.fitting == [] and "the budget is 0.001" in found.refused["fastv"]


def test_wrong_names_and_conventions_without_time():
    with pytest.raises(UserError, match="Did you mean"):
        recommend("vicuna-7bb", "a100", 10)
    with pytest.raises(UserError, match="defines no time"):
        recommend("vicuna-7b", "a100", 10, convention="fastv")


def test_the_command_prints_table_and_json(capsys):
    arguments = ["recommend", "--arch", "vicuna-7b", "--hardware", "a100", "--budget-ms", "10"]
    assert cli.run(arguments) == 0
    table = capsys.readouterr().out
    assert "aim@image-low" in table and "quoted" in table and all(len(line) <= 100 for line in table.splitlines())
    assert cli.run([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["fitting"]
