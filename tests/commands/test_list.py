"""`tokenzoo list`: methods under the place where they act, what they reduce, and whether the prompt's text has a say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_clip import build

from tokenzoo import cli
from tokenzoo.zoo.describe import describe
from tokenzoo.zoo.plugins import load_zoo

METHODS = [name for name in load_zoo((), ()).names() if load_zoo((), ()).info(name).kind == "built-in"]
ENCODER, LLM = ["Before the encoder", "Inside the encoder", "Before the projector"], ["Before the LLM", "Inside the LLM"]
PLACES = ["No reduction", *ENCODER, *LLM, "In the KV cache"]
PLUGIN = """
from dataclasses import dataclass
from tokenzoo import TokenReducer
@dataclass
class Mine(TokenReducer):
    name = "mine"
    def left(self, views, source, architecture):
        {left}
    def reduce(self, tokens):
        return tokens.views()[0]
"""


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.run([*options, "list"]) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict]:
    assert cli.run([*options, "list", "--format", "json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_methods_stand_under_the_first_place_where_they_act(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    place, found = "", {}
    for line in listed(capsys).splitlines():
        if line in PLACES:
            place = line
            found[place] = []
        elif place and line[:1].strip():
            found[place].append(line.split()[0])
    assert list(found) == PLACES
    assert found["No reduction"] == ["none"]
    assert "tome" in found["Inside the encoder"]
    assert {"aim", "prumerge", "visionzip"} <= set(found["Before the projector"])
    assert {"divprune", "holitom", "random"} <= set(found["Before the LLM"])
    assert {"fastv", "vtw", "sparsevlm"} <= set(found["Inside the LLM"])
    assert found["In the KV cache"] == ["snapkv"]
    assert sorted(name for names in found.values() for name in names) == sorted(METHODS)


def test_what_a_method_reduces(capsys) -> None:
    found = {name: row["reduces"] for name, row in rows(capsys).items()}
    assert found["none"] == []
    assert found["evs"] == found["dycoke"] == found["prunevid"] == ["video"]
    assert found["snapkv"] == ["image", "video"]
    assert found["fastv"] == found["visionzip"] == found["vidcom2"] == ["image", "video"]


@pytest.mark.parametrize(
    ("left", "reduces"),
    [
        ("return 1 if source.kind == 'image' else sum(views)", ["image"]),
        ("return [count // 2 for count in views] if len(views) > 1 else list(views)", ["video"]),
        ("return None", ["image", "video"]),
        ("from tokenzoo import UnsupportedError; raise UnsupportedError('no picture')", []),
    ],
)
def test_a_plugins_declaration_is_asked(left: str, reduces: list[str], tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(left=left))
    row = rows(capsys, "--plugin", str(path))["mine"]
    assert row["reduces"] == reduces and row["text_aware"] is False


@pytest.fixture(scope="module")
def asked():
    """A model, and one picture with several questions."""
    from tokenzoo.bench.tasks import task
    from tokenzoo.models.checkpoint import load
    from tokenzoo.models.question import Question

    (first,) = task("attribute").questions(1)
    prompts = [first.prompt, "how many shapes are there?", "is there a red circle?", "what digit is blue?"]
    return load("embedded:llava"), [Question("", prompt, first.images) for prompt in prompts]


@pytest.mark.parametrize("name", METHODS)
def test_text_aware_is_what_a_question_changes(name: str, asked) -> None:
    import torch

    from tokenzoo.application import apply
    from tokenzoo.report.kept import patch_rows, stage_pictures

    if name == "framefusion":
        pytest.skip("It prunes one picture after the attention of layer 0, where the last token is no word of the question yet.")
    checkpoint, questions = asked
    seen = set()
    (method,) = build(name)
    if name == "cdpruner":
        from tiny_clip import tiny_clip

        method = method.replace(text_tower=tiny_clip(128))
    elif name == "mustdrop":  # its thresholds are shares of much longer prompts' attention
        method = method.replace(total=0.01, single=0.01)
    checkpoint = checkpoint.scaled(method.picture_scale)
    for question in questions:
        inputs = checkpoint.inputs([question])
        with apply(checkpoint.model, method, **checkpoint.words([question])) as run, torch.inference_mode():
            checkpoint.model(**inputs, logits_to_keep=1)
        alive = [np.concatenate([view.ravel() for view in stage.views]) for stage in stage_pictures(run.trace)]
        sample = run.trace.samples[0]
        seen.add((patch_rows(sample.sources[0]).tobytes(), np.array(alive).tobytes(), str(sample.cached)))
    assert (len(seen) > 1) == (method.text_aware and "image" in describe(load_zoo((), ()), name).reduces)


@pytest.mark.filterwarnings("ignore")
def test_a_declaration_that_fails_is_left_out_with_its_reason(tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(left="return 1 / 0"))
    assert cli.run(["--plugin", str(file), "list"]) == 0
    out, err = capsys.readouterr()
    assert "fastv" in out and "mine" not in out and "1 cannot be used: mine." in err
    assert cli.run(["--plugin", str(file), "show", "mine"]) == 2
    assert "its declaration fails: ZeroDivisionError: division by zero (mine.py, line 8)." in capsys.readouterr().err
