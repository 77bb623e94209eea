"""Wrong options, specifications and configs of `compare`, `results`, `check` and `show-kept`: one line, before anything runs."""

from __future__ import annotations

import pytest

from tokenzoo import cli
from tokenzoo.comparison import cells

NINES = "9" * 5000
NUMBERS = ["0", "-1", "1.5", "x", "", "nan", "inf", "1e3", NINES, "1" + "0" * 30, "0x10", " ", "٣x"]
OPTIONS = {
    "--limit": NUMBERS, "--rounds": NUMBERS, "--batch-size": NUMBERS, "--frames": NUMBERS, "--max-new-tokens": NUMBERS,
    "--new-tokens": [*NUMBERS, "1"], "--seed": [number for number in NUMBERS if number != "0"],
    "--budget": ["", "0", "0%", "nan", "inf", "1e999", "-5%", "101%", "1e9 tokens", "20ms", "20ms@", "20ms@nope", "x",
                 "33%,nan", NINES, "1e30", "%", "tokens", "33%%", "1 2", "33% apples", ",".join(["33%"] * 40), "5%ms@a100"],
    "--retention": ["", "0", "nan", "1e999", "-1", "101%", "x", "25%,x", NINES, "inf%", ",".join(["25%"] * 40)],
    "--dtype": ["", "nope", "float8_e4m3fn", "int8", "FLOAT32", NINES],
    "--attention": ["", "nope", "flash", "SDPA", "flex_attention"],
    "--device": ["nope", "cuda:99", "meta", "cpu:x", "tpu", "9" * 100],
    "--convention": ["nope", "", "exakt", NINES],
    "--price": ["", "a", "a@b", "@", "a@", "@a100", "vicuna-7b@nope", "nope@a100", "vicuna-7b@a100@a100", NINES],
    "--tasks": ["nope", "", ",", "./nowhere/", "atribute", "image,nope", "/dev/null", "order/", NINES],
    "--model": ["embedded:foo", "./nowhere", "/dev/null", "", "embedded:", "a/b/c", ",", ".", NINES],
    "--methods": ["", ",", "nope", "fastvv", "FASTV", "fastv:", "fastv:K", "fastv:K=", "fastv:K=x", "fastv:K=-1", "fastv:R=2",
                  "fastv:R=nan", "fastv:L=1", "fastv:K=1,K=2", "fastv@nope", "aim,,fastv", "aim+", "+aim", "fastv:K=[1,2]",
                  "fastv:K={a: 1}", "fastv:K=!!python/object:os.system", f"fastv:K={NINES}", "fastv:K='", "fastv:K=" + "[" * 50,
                  "a" * 5000, "fastv:K=1e400", "../x", "fastv;ls", "$(ls)", "fastv:R=&a [*a]"],
}  # fmt: skip
CASES = [(name, value) for name, values in OPTIONS.items() for value in values]


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    monkeypatch.setattr(cells, "accuracy_part", lambda *_: pytest.fail("something was measured"))


def one_line(capsys, arguments):
    code = cli.run(arguments)
    said = capsys.readouterr()
    assert code in (1, 2), said.err
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("Error: ") and "Traceback" not in said.err and said.out == ""
    return line


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name} {value[:24]!r}" for name, value in CASES])
def test_options(capsys, name, value):
    given = {"--methods": "fastv", "--model": "embedded:llava", "--tasks": "attribute", name: value}
    arguments = [part for option, text in given.items() for part in (option, text)]
    one_line(capsys, ["compare", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare"],
        ["compare", "--methods"],
        ["compare", "--methods", "aim", "--as-published", "--budget", "33%"],
        ["compare", "--methods", "aim", "--as-published", "--retention", "33%"],
        ["compare", "--methods", "aim", "--budget", "33%", "--retention", "33%"],
        ["compare", "--methods", "aim", "--budget", "9ms@a100", "--convention", "fastv"],
        ["compare", "--methods", "aim", "--match-flops", "33%"],
        ["compare", "--methods", "aim", "--format", "xml"],
        ["compare", "--methods", "aim", "--out", "/dev/null/x"],
        ["compare", "--methods", "aim", "--log-samples", "/dev/null/x"],
        ["compare", "--methods", "aim", "--save-config", "/dev/null/x"],
        ["compare", "--methods", "aim", "--config", "/nowhere.yaml"],
        ["compare", "--methods", "aim", "surplus"],
        ["results", "--store", "/nowhere.sqlite"],
        ["results", "--kind", "x"],
        ["results", "--format", "xml"],
        ["check"],
        ["check", "nope"],
        ["check", "/nowhere.py"],
        ["check", "fastv", "--family", "nope"],
        ["check", "fastv", "--backend", "nope"],
        ["show-kept"],
        ["show-kept", "--method", "fastv"],
        ["show-kept", "--method", "fastv", "--image", "/nowhere.png"],
        ["show-kept", "--method", "fastv", "--image", "/nowhere.png", "--out", "a.txt"],
        ["show-kept", "--method", "fastv", "--image", "a", "--video", "b"],
        ["show-kept", "--method", "fastv", "--video", "/nowhere.mp4", "--frames", "0"],
    ],
    ids=" ".join,
)
def test_commands(capsys, arguments):
    one_line(capsys, arguments)


CONFIGS = ["", "- a", "3", "methods: [", "methods: {a: 1}", "methods: 3", "methods: aim\nlimit: []", "methods: aim\nbudget: {}",
           "methods: aim\nbudget: [33%, nan]", "methods: aim\nnope: 1", "methods: aim\nlimit: 1e99", 
           "methods: !!python/object/apply:os.system [ls]", "methods: aim\nretention: 2", "methods: null",
           "methods: aim\ndtype: float8", "methods: aim\nas_published: true\nbudget: 33%", "\t",
           "methods: aim\nmatch_flops: 25%", "methods: [aim, 3]", "methods: aim\ntiming: x"]  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS)
def test_configs(capsys, tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    one_line(capsys, ["compare", "--config", str(path), "--model", "embedded:llava", "--tasks", "attribute"])
