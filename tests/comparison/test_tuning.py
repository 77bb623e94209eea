"""`tokenzoo tune`: what is searched, that unseen questions stay unseen, that a found optimum is found, and resuming."""

from __future__ import annotations

import json

import pytest

from tokenzoo import cli
from tokenzoo.comparison import cells
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store
from tokenzoo.comparison.tuning import axes_of, best_of, tune
from tokenzoo.errors import UserError
from tokenzoo.zoo.plugins import load_zoo

SMALL = {"model": "embedded:llava", "tasks": "attribute,existence", "limit": 4, "timing": False, "batch_size": 4}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "results.sqlite")
    return tune(Settings(methods="fastv", **SMALL), 4, store), store


def test_axes_are_what_a_method_accepts_without_its_knob():
    axes = {axis.name: axis.values for axis in axes_of(load_zoo().build("aim"), 12)}
    assert "retention" not in axes
    assert axes["prune_before"] == (False, True) and axes["merge_at"] == ("auto", "before_projector", "pre_llm")
    assert axes["l1"] == (None, *range(13)) and axes["l2"] == (None, *range(1, 13))
    assert axes["temperature"] == (0.1, 0.025, 0.05, 0.075, 0.15, 0.2, 0.4)


def test_axes_of_a_pipeline_belong_to_their_method():
    axes = axes_of(load_zoo().build("fastv+vtw"), 12)
    assert {axis.reducer for axis in axes if axis.name == "K"} == {0, 1}
    assert "R" in {axis.name for axis in axes}, "a pipeline has no one knob: each method's is searched"
    assert {axis.name for axis in axes_of(load_zoo().build("fastv"), 12)} == {"K"}, "a budget sets R and forgets rank"


def test_unseen_questions_are_others(tuned):
    """The model without a method answered both halves: no question is in both."""
    tuning, store = tuned
    halves = [
        {answer["question_id"] for answer in cell.result["answers"]}
        for cell in store.cells(kind="accuracy", method="none", task="attribute")
    ]
    assert sorted(map(sorted, halves)) == [[f"attribute/0/{n}" for n in range(4)], [f"attribute/0/{n}" for n in range(4, 8)]]
    assert tuning.calibration == 8 and tuning.section.rows[0].overall.questions == 8
    assert [row.method for row in tuning.section.rows][:3] == ["none", "random", "pool"]


def test_the_best_is_the_most_accurate_and_costs_no_more_than_the_budget(tuned):
    tuning, _ = tuned
    ran = [trial for trial in tuning.trials if trial.accuracy is not None]
    assert len(tuning.trials) == 5 and len({trial.specification for trial in ran}) == len(ran)
    assert tuning.best.accuracy == max(trial.accuracy for trial in ran)
    assert all(trial.llm_share <= 0.33 * 1.001 for trial in ran)
    assert tuning.best.specification in {row.specification for row in tuning.section.rows}


def test_a_search_goes_on_where_it_stopped(tuned, monkeypatch):
    tuning, store = tuned

    def never(*_arguments, **_options):
        raise AssertionError("measured anew")

    monkeypatch.setattr(cells, "accuracy_cell", never)
    again = tune(Settings(methods="fastv", **SMALL), 4, store)
    assert again.trials == tuning.trials and again.gain == tuning.gain


def test_of_equally_good_settings_the_first_stays(tuned):
    trials = [trial for trial in tuned[0].trials if trial.accuracy is not None]
    tied = [trial for trial in trials if trial.accuracy == best_of(trials).accuracy]
    assert best_of(trials) is tied[0]


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ("aim,fastv", {}, "one method and one budget"),
        ("all", {}, "one method and one budget"),
        ("aim", {"budget": "33%,50%"}, "one method and one budget"),
        ("aim", {"tasks": "all", "model": "embedded"}, "one model and one kind of input"),
        ("none", {}, "no parameter besides its retention"),
    ],
)
def test_what_cannot_be_tuned_is_said_up_front(methods, more, message):
    with pytest.raises(UserError, match=message):
        tune(Settings(methods=methods, **{**SMALL, **more}), 2)


def test_the_command_prints_and_writes(tmp_path, capsys):
    folder = tmp_path / "found"
    options = [
        "--method",
        "fastv",
        "--tasks",
        "attribute",
        "--limit",
        "2",
        "--trials",
        "2",
        "--store",
        str(tmp_path / "s.sqlite"),
    ]
    assert cli.run(["tune", *options, "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Best: fastv" in said and "On the unseen questions above" in said
    found = json.loads((folder / "tuning.json").read_text())
    assert len(found["trials"]) == 3 and found["best"] in {trial["specification"] for trial in found["trials"]}
    assert (folder / "tuning.png").stat().st_size > 5000 and (folder / "tuning.pdf").exists()
