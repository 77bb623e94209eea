"""`compare --plan`: everything is checked, what would run is said, and nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tokenzoo import cli
from tokenzoo.comparison.plan import plan_of
from tokenzoo.comparison.settings import Settings

HEAVY = {"torch", "transformers", "scipy", "matplotlib"}
PROGRAM = (
    "import sys; from tokenzoo.cli import run; code = run(sys.argv[1:]); "
    f"print('imported', sorted({HEAVY} & set(sys.modules))); sys.exit(code)"
)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (96, 96), "red").save(folder / "a.png")
    line = json.dumps({"image": "a.png", "question": "what color?", "answer": "red", "choices": ["red", "blue"]})
    (folder / "questions.jsonl").write_text(f"{line}\n{line}\n{line}\n")
    return folder


def apart(*arguments, **variables):
    """The command in a process of its own: what it prints, and what it has imported."""
    environment = {**os.environ, "TOKENZOO_LOAD_PLUGINS": "", **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=environment)
    return done, json.loads(done.stdout.splitlines()[-1].removeprefix("imported ").replace("'", '"'))


def test_a_plan_needs_no_torch_and_writes_nothing(tmp_path, photographs):
    store = tmp_path / "results.sqlite"
    options = ["--tasks", f"attribute,order,{photographs}", "--limit", "10", "--budget", "33%,50%", "--price", "vicuna-7b@a100"]
    done, imported = apart("compare", "--methods", "fastv,aim", *options, "--plan", TOKENZOO_STORE=str(store), COLUMNS="200")
    assert done.returncode == 0 and imported == [], done.stderr
    said = done.stdout.splitlines()
    assert said[0] == (
        "Rows: none as it is; random, pool, fastv, aim each set to at most 33% of the LLM FLOPs, 50% of the LLM FLOPs: "
        "9 rows a table."
    )
    assert said[1] == "embedded:llava, images: attribute, photographs; 13 questions a row, 117 answers."
    assert said[2] == "embedded:onevision, videos: order; 10 questions a row, 90 answers."
    assert "Prices: vicuna-7b@a100, convention llm-viewer." in said and said[-2] == "Nothing was run."
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "--methods", "fastvv"], "Did you mean 'fastv'?"),
        (["compare", "--methods", "fastv:K=x"], "Parameter 'K' of 'fastv' cannot be 'x'"),
        (["compare", "--methods", "fastv", "--tasks", "atribute"], "Did you mean 'attribute'?"),
        (["compare", "--methods", "fastv", "--model", "embedded:lava"], "Did you mean 'embedded:llava'?"),
        (["compare", "--methods", "fastv", "--model", "./nowhere"], "No model directory"),
        (["compare", "--methods", "fastv", "--budget", "9ms@a1000000"], "hardware"),
        (["compare", "--methods", "fastv", "--price", "vicuna-7c@a100"], "Did you mean 'vicuna-7b'?"),
        (["check", "fastvv"], "Did you mean 'fastv'?"),
        (["check", "nowhere.py"], "there is no file"),
        (["run", "what?", "--method", "fastvv", "--image", "a.png"], "Did you mean 'fastv'?"),
        (["show-kept", "--method", "fastvv", "--image", "a.png"], "Did you mean 'fastv'?"),
        (["study", "tradeoff", "--tasks", "atribute"], "Did you mean 'attribute'?"),
        (["study", "tradeoff", "--model", "embedded:lava"], "Did you mean 'embedded:llava'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_is_answered_before_torch_is_loaded(arguments, says):
    """A typo in a specification once cost the four seconds that torch takes."""
    done, imported = apart(*arguments)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert imported == []


def test_a_plan_checks_a_users_own_questions(photographs, capsys):
    (photographs / "questions.jsonl").write_text('{"image": "b.png", "question": "?a", "answer": "red"}\n')
    assert cli.run(["compare", "--methods", "fastv", "--tasks", str(photographs), "--plan"]) == 2
    assert "questions.jsonl line 1: No image file" in capsys.readouterr().err


def test_a_plan_refuses_a_video_that_the_model_does_not_take(photographs, capsys):
    (photographs / "clip").mkdir()
    (photographs / "clip" / "0.png").write_bytes((photographs / "a.png").read_bytes())
    with (photographs / "questions.jsonl").open("a") as file:
        file.write('{"video": "clip", "question": "what happens?", "answer": "red"}\n')
    arguments = ["compare", "--methods", "fastv", "--model", "embedded:llava", "--tasks", str(photographs), "--plan"]
    assert cli.run(arguments) == 2
    assert "is about a video, which 'embedded:llava' does not take" in capsys.readouterr().err


def test_a_model_that_was_not_downloaded_is_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    plan = plan_of(Settings(methods="fastv", model="someone/some-model", tasks="attribute,order"))
    assert [(section.kind, section.takes_videos) for section in plan.sections] == [("image", None), ("video", None)]


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 5), ({"as_published": True}, 5), ({"budget": "33%,50%,25%"}, 13), ({"retention": "25%,50%"}, 9)],
)
def test_rows_are_counted(options, rows):
    assert plan_of(Settings(methods="fastv,aim", **options)).rows == rows


def test_a_plan_of_benchmarks_says_what_they_take_without_torch_or_lmms_eval(tmp_path):
    done, imported = apart("compare", "--config", "aim-iccv2025-long-video", "--plan", TOKENZOO_STORE=str(tmp_path / "no.sqlite"))
    assert done.returncode == 0 and imported == [], done.stderr
    said = " ".join(done.stdout.split())
    assert "16 cells" in said and "GPU hours by the roofline of a100-40gb" in said and "lmms-eval/Video-MME" in said
    assert "12,605" in said, "the questions of four benchmarks"
