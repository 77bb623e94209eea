"""Wrong options and media of `run`: one line."""

from __future__ import annotations

import pytest
from PIL import Image

from tokenzoo import cli

NINES = "9" * 5000
OPTIONS = {
    "--method": ["", "nope", "fastv:K=x", "fastv:R=7", "a+", f"fastv:K={NINES}", "fastv:K=20"],
    "--max-new-tokens": ["0", "-1", "x", "1" + "0" * 20, NINES, "1.5", "nan"],
    "--frames": ["0", "-1", "x", "1" + "0" * 20, NINES],
    "--dtype": ["nope", "float8_e4m3fn", "", "int8", "Float32"],
    "--device": ["nope", "cuda:99", "meta", "x:y"],
    "--model": ["embedded:foo", "./nowhere", "/dev/null", "", "a/b/c", "embedded"],
    "--image": ["none.png", "/", "/dev/null", ".", "x" * 5000, ""],
    "--video": ["none.mp4", "/dev/null", "x" * 5000],
    "--trace": ["/nowhere/trace.json", "/"],
}
CASES = [(name, value) for name, values in OPTIONS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name} {value[:24]!r}" for name, value in CASES])
def test_options(capsys, tmp_path, name, value):
    picture = tmp_path / "a.png"
    Image.new("RGB", (96, 96)).save(picture)
    given = [] if name in ("--image", "--video") else ["--image", str(picture)]
    code = cli.run(["run", "what color ?", *given, name, value])
    said = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2), said
    assert (
        said[-1].startswith("Error: ")
        and [line for line in said[:-1] if not line.startswith(("Note: ", "Usage: ", "Try ")) and line] == []
    )


@pytest.mark.parametrize("question", ["what is <image>?", "<image>" * 9])
def test_questions(capsys, tmp_path, question):
    picture = tmp_path / "a.png"
    Image.new("RGB", (96, 96)).save(picture)
    assert cli.run(["run", question, "--image", str(picture)]) == 2
    assert "stands for a picture" in capsys.readouterr().err.strip().splitlines()[-1]
