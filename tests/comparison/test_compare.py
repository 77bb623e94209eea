"""`tokenzoo compare` on the embedded model with a handful of questions: rows, failures, errors, and what is reused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenzoo import UserError, cli
from tokenzoo.comparison import cells
from tokenzoo.comparison.compare import compare
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store

SMALL = {"model": "embedded:llava", "tasks": "attribute,existence", "limit": 2, "timing": False, "batch_size": 2}

BROKEN = """
from dataclasses import dataclass
from typing import ClassVar
from tokenzoo import TokenReducer

@dataclass
class Broken(TokenReducer):
    \"\"\"Works on the first task's questions, then fails.\"\"\"
    name: ClassVar[str] = "breaks_midway"
    seen = 0

    def layers(self, num_layers):
        return (1,)

    def after_layer(self, layer):
        type(self).seen += 1
        if type(self).seen > 2:
            raise ZeroDivisionError("no token left to divide by")

    def schedule(self, workload):
        return [workload.visual_tokens] * workload.architecture.layers
"""


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "results.sqlite")
    settings = Settings(methods="aim,fastv:K=3", price=["llava-1.5-7b@a100"], with_published=True, **SMALL)
    return compare(settings, store), settings, store


def test_none_and_random_are_always_rows_and_none_is_the_measure(comparison):
    section = comparison[0].sections[0]
    assert [row.label for row in section.rows] == ["none", "random", "aim", "fastv:K=3"]
    none, _, aim, fastv = section.rows
    assert none.llm_share == 1.0 and none.visual_share == 1.0 and none.overall.difference is None
    assert aim.overall.questions == 4 and aim.overall.difference is not None
    assert set(aim.scores) == {"attribute", "existence"} and aim.scores["existence"].f1 is not None
    assert 0 < aim.llm_share < fastv.llm_share < 1


def test_tokens_are_the_mean_over_layers_of_the_measured_trace(comparison):
    fastv = comparison[0].sections[0].rows[3]
    assert fastv.tokens_per_layer == [144.0] * 3 + [72.0] * 9
    assert fastv.visual_tokens == pytest.approx((3 * 144 + 9 * 72) / 12)


def test_prices_and_published_rows(comparison):
    section = comparison[0].sections[0]
    price = section.rows[0].prices["llava-1.5-7b@a100"]
    assert price.tflops == pytest.approx(8.18, abs=0.005) and price.convention == "llm-viewer"
    assert {"aim", "fastv"} <= {row.method for row in section.published}
    assert all("image" in row.source for row in section.published)


def test_a_rerun_measures_nothing_and_gives_the_same_rows(comparison, monkeypatch):
    first, settings, store = comparison
    monkeypatch.setattr(cells, "accuracy_cell", lambda *_: pytest.fail("a finished cell was measured again"))
    again = compare(settings, store)
    assert [vars(row) for row in again.sections[0].rows] == [vars(row) for row in first.sections[0].rows]


def test_fresh_measures_anew_and_the_same(comparison):
    first, settings, store = comparison
    fewer = settings.model_copy(update={"methods": ["fastv:K=3"]})
    again = compare(fewer, store, fresh=True)
    assert vars(again.sections[0].rows[-1]) == vars(first.sections[0].rows[-1])


def test_each_method_at_each_retention(comparison):
    store = comparison[2]
    found = compare(Settings(methods="fastv,vtw", retention="25%,50%", **{**SMALL, "tasks": "attribute"}), store)
    rows = {row.label: row for row in found.sections[0].rows}
    assert list(rows) == ["none", "random 25%", "fastv 25%", "vtw 25%", "random 50%", "fastv 50%", "vtw 50%"]
    assert rows["fastv 25%"].tokens_per_layer[-1] == 36 and "R=0.75" in rows["fastv 25%"].note
    if rows["vtw 25%"].status != "ok":
        assert rows["vtw 25%"].status == "refused" and "retention" in rows["vtw 25%"].note
    assert not found.failed


def test_matched_rows_cost_the_same(comparison):
    settings = Settings(methods="fastv,uniform,prumerge", match_flops="40%", **{**SMALL, "tasks": "attribute"})
    rows = compare(settings, comparison[2]).sections[0].rows
    assert [row.status for row in rows] == ["ok"] * 5
    for row in rows[1:4]:
        assert row.llm_share == pytest.approx(0.4, rel=0.02), row.label
        assert "matched to" in row.note
    assert rows[4].llm_share == pytest.approx(0.4, rel=0.05)  # set by calibration questions: it depends on the picture


def test_a_method_that_fails_in_mid_run_is_a_failed_row(tmp_path, capsys, monkeypatch):
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    options = ["--model", "embedded:llava", "--tasks", "attribute,existence", "--limit", "2", "--no-timing"]
    code = cli.run(["--plugin", str(plugin), "compare", "--methods", "breaks_midway,fastv", *options, "--format", "json"])
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["sections"][0]["rows"]}
    assert code == 1
    assert rows["breaks_midway"]["status"] == "failed"
    assert "ZeroDivisionError: no token left to divide by (task existence)" in rows["breaks_midway"]["note"]
    assert rows["fastv"]["status"] == "ok" and rows["fastv"]["overall"]["questions"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "fastvv"], "Unknown method 'fastvv'. Did you mean 'fastv'?"),
        (["--methods", "fastv:L=3"], "Unknown parameter of 'fastv' 'L'"),
        (["--methods", "fastv:K=two"], "Parameter 'K' of 'fastv' cannot be 'two'"),
        (["--methods", "fastv:R=2"], "Parameter 'R' of 'fastv' cannot be 2"),
        (["--methods", "fastv@nope"], "'nope'"),
        (["--methods", "aim,,fastv"], "empty method"),
        ([], "--methods is needed"),
        (["--methods", "aim", "--model", "./nowhere"], "No model directory './nowhere'"),
        (["--methods", "aim", "--tasks", "atribute"], "Unknown task 'atribute'. Did you mean 'attribute'?"),
        (["--methods", "aim", "--tasks", "./nowhere/"], "No task folder './nowhere/'"),
        (["--methods", "aim", "--config", "nowhere.yaml"], "Cannot read config 'nowhere.yaml'"),
        (["--methods", "aim", "--price", "vicuna-7b"], "no ARCH@GPU"),
        (["--methods", "aim", "--price", "vicuna-7c@a100"], "Did you mean 'vicuna-7b'?"),
        (["--methods", "aim", "--price", "vicuna-7b@b100000"], "hardware"),
        (["--methods", "aim", "--limit", "0"], "--limit"),
        (["--methods", "aim", "--match-flops", "25%", "--match-tokens", "25%"], "only one of"),
        (["--methods", "aim", "--match-prefill-ms", "10"], "needs a GPU"),
        (["--methods", "aim", "--retention", "120%"], "at most 100%"),
        (["--methods", "aim", "--out", "/dev/null/here"], "Cannot write into '/dev/null/here'"),
        (["--methods", "aim", "--store", "/dev/null/here.sqlite"], "Cannot use the result store"),
        (["--methods", "aim", "--save-config", "/dev/null/study.yaml"], "Cannot write config"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    code = cli.run(["compare", *arguments])
    said = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert says in said and "\n" not in said


def test_an_empty_task_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "questions.jsonl").write_text("\n")
    assert cli.run(["compare", "--methods", "fastv", "--tasks", str(tmp_path / "mine")]) == 2
    said = capsys.readouterr().err.strip()
    assert "is empty" in said and "\n" not in said


def test_every_format_is_written(comparison, tmp_path):
    from tokenzoo.report.files import FILES, write_all

    written = {path.name for path in write_all(comparison[0], tmp_path / "out")}
    assert set(FILES.values()) < written
    assert {Path(name).suffix for name in written} >= {".png", ".pdf"}


def test_embedded_leaves_out_a_model_that_is_not_shipped(comparison, monkeypatch):
    from tokenzoo.comparison import plan

    monkeypatch.setattr(plan, "is_shipped", lambda model: model == "embedded:llava")
    settings = Settings(methods="fastv:K=3", model="embedded", tasks="attribute,order", limit=2, timing=False, batch_size=2)
    found = compare(settings, comparison[2])
    assert [section.title for section in found.sections] == ["embedded:llava, images"]
    assert found.notes == ["No video tasks: embedded:onevision is not part of this installation."]
    with pytest.raises(UserError, match="No embedded model"):
        compare(settings.model_copy(update={"tasks": ["order"]}), comparison[2])


def write_task(folder, *rows):
    from PIL import Image

    folder.mkdir(parents=True)
    Image.new("RGB", (96, 96), "grey").save(folder / "a.png")
    (folder / "clip").mkdir()
    Image.new("RGB", (96, 96), "grey").save(folder / "clip" / "0.png")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


CHOSEN = {"image": "a.png", "question": "what color is the circle?", "answer": "red", "choices": ["red", "blue"]}
FREE = {"image": "a.png", "question": "what color is the circle?", "answer": "red"}
MOVING = {"video": "clip", "question": "which digit appears first?", "answer": "7"}


def test_counts_are_means_over_all_questions_of_a_mixed_task(tmp_path):
    """One batch's questions may need several runs: each run's tokens count."""
    mixed = write_task(tmp_path / "mixed", CHOSEN, CHOSEN, FREE, {**FREE, "image": ["a.png", "a.png"]})
    settings = Settings(methods="fastv:K=3", model="embedded:llava", tasks=[mixed], timing=False)
    none, _, fastv = compare(settings).sections[0].rows
    assert none.overall.questions == 4 and none.visual_tokens == (3 * 144 + 288) / 4
    assert fastv.tokens_per_layer == [180.0] * 3 + [90.0] * 9


def test_a_video_that_a_model_does_not_take_is_no_question_for_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    folder = write_task(tmp_path / "both", CHOSEN, MOVING)
    assert cli.run(["compare", "--methods", "fastv", "--model", "embedded:llava", "--tasks", folder]) == 2
    assert "is about a video, which 'embedded:llava' does not take" in capsys.readouterr().err


def test_tasks_of_one_name_are_told_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    first, second = write_task(tmp_path / "a" / "val", CHOSEN), write_task(tmp_path / "b" / "val", CHOSEN)
    builtin = write_task(tmp_path / "counting", CHOSEN)
    for tasks in (f"{first},{second}", builtin):
        assert cli.run(["compare", "--methods", "fastv", "--model", "embedded:llava", "--tasks", tasks]) == 2
        assert "Two tasks are called" in capsys.readouterr().err


def test_tasks_that_a_model_cannot_be_asked_are_named(comparison):
    settings = Settings(methods="fastv:K=3", **{**SMALL, "tasks": "attribute,order"})
    assert compare(settings, comparison[2]).notes == ["embedded:llava takes no videos: order left out."]


def test_a_budget_that_a_price_cannot_say_is_refused_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    monkeypatch.setattr(cells, "accuracy_cell", lambda *_: pytest.fail("something was measured"))
    options = ["--methods", "fastv", "--price", "llava-1.5-7b@a100", "--match-flops", "25%"]
    assert cli.run(["compare", *options]) == 2
    assert "has no default for videos to match on" in capsys.readouterr().err
    options = ["--methods", "fastv", "--price", "llava-1.5-7b@a100", "--match-prefill-ms", "20", "--convention", "fastv"]
    assert cli.run(["compare", *options, "--tasks", "image"]) == 2
    assert "defines no time" in capsys.readouterr().err


def test_a_method_that_cannot_be_set_on_this_model_is_a_refused_row(comparison):
    settings = Settings(methods="fastv:K=20,uniform", match_tokens="50%", **{**SMALL, "tasks": "attribute"})
    rows = {row.label: row for row in compare(settings, comparison[2]).sections[0].rows}
    assert rows["fastv:K=20"].status == "refused" and "exceeds the 12 layers" in rows["fastv:K=20"].note
    assert rows["uniform"].status == "ok"


def test_errors_of_the_store_are_no_methods_fault(tmp_path, monkeypatch):
    from tokenzoo.comparison.store import StoreError

    store = Store(tmp_path / "results.sqlite")
    monkeypatch.setattr(Store, "put", lambda *_: (_ for _ in ()).throw(StoreError("disk full")))
    with pytest.raises(StoreError, match="disk full"):
        compare(Settings(methods="fastv:K=3", **SMALL), store)
