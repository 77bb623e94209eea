"""Wrong options and names of the commands that need no torch: one line, at once, and nothing is imported for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NINES = "9" * 5000
NUMBERS = ["-1", "1.5x", "", "nan", "inf", "1e400", NINES, "1" + "0" * 22, "0x10", "²"]
OF_COST = {
    "--images": ["0", *NUMBERS], "--frames": ["0", *NUMBERS], "--tokens": NUMBERS, "--text-tokens": NUMBERS,
    "--batch": ["0", *NUMBERS], "--decode": [*NUMBERS, "1000000000000"], "--tensor-parallel": ["0", "3", "5", *NUMBERS],
    "--scale": ["0", "1", *NUMBERS], "--dtype": ["", "x", "float64", NINES], "--convention": ["", "x", "Exact!", NINES],
    "--hardware": ["", "x", "a100@", NINES], "--arch": ["", "x", "../vicuna-7b", NINES], "--format": ["", "xml", NINES],
    "--config": ["", ".", "/dev/null", "/nowhere.json", NINES], "--trace": ["", ".", "/dev/null", "/nowhere.json", NINES],
    "--methods": ["", ",", "x", "fastv:K=x", "fastv:R=2", "fastv:K=90", "prumerge", "prumerge,fastv:K=90", "none+x", NINES],
}  # fmt: skip
OF_RECOMMEND = {
    "--budget-ms": ["0", *NUMBERS], "--arch": ["", "x", NINES], "--hardware": ["", "x", NINES], 
    "--convention": ["x", "fastv", ""], "--format": ["xml", ""],
}  # fmt: skip
RECOMMEND = {"--arch": "vicuna-7b", "--hardware": "a100", "--budget-ms": "10"}
OTHERS = [
    ["cost", "--images", "1", "--frames", "2"],
    ["cost", "--scale", "2"],
    ["cost", "--counted", "--convention", "fastv"],
    ["cost", "surplus"],
    ["cost", "--nope"],
    ["recommend"],
    ["recommend", "--arch", "vicuna-7b", "--hardware", "a100", "--budget-ms", "9", "--video"],
    ["list", "--format", "xml"],
    ["list", "surplus"],
    ["plugins", "surplus"],
    ["show"],
    ["show", ""],
    ["show", "fastv:K=3"],
    ["show", "fastv+aim"],
    ["show", NINES],
    ["reproduce", "x"],
    ["reproduce", ""],
    ["reproduce", "aim-iccv2025", "--table", "x"],
    ["reproduce", "aim-iccv2025", "--format", "xml"],
    ["study", "x"],
    ["study"],
    ["study", "tradeoff", "--limit", "0"],
    ["study", "tradeoff", "--limit", "1" + "0" * 13],
    ["study", "tradeoff", "--seed", NINES],
    ["run", "what?", "--image", "a.png", "--dtype", "nope"],
    ["run", "what?", "--image", "a.png", "--frames", "0"],
    ["study", "tradeoff", "--seed", "-1"],
    ["study", "tradeoff", "--tasks", ""],
    ["study", "tradeoff", "--tasks", "nope"],
    ["study", "tradeoff", "--model", "./nowhere"],
    ["study", "tradeoff", "--out", "/dev/null/x"],
    ["results", "--store", "/"],
    ["results", "--format", "xml"],
    ["--plugin", "/nowhere.py", "list"],
    ["--plugin", "/", "list"],
    ["--plugin", "", "list"],
    ["--registry", "/nowhere.yaml", "list"],
    ["--registry"],
    ["--nope"],
    [""],
    ["LIST"],
    [NINES],
]
NAMES = ["", "A", "Ä", "a b", "a--b", "-a", "a.b", "a/b", "../a", "1a", "a" * 65, "a" * 5000, "aim", "none", "torch", "numpy",
         "class", "import", "json", "tokenzoo", "pytest", "a\0b", "a;b", "日本"]  # fmt: skip
SIZES = {"num_attention_heads": 4, "intermediate_size": 9, "vocab_size": 9}
CONFIGS = [[1], "x", 3, None, {}, {"model_type": "llava"}, {"model_type": "llava", "text_config": [1], "vision_config": "x"},
           {"model_type": "llava", "text_config": {"hidden_size": "x"}}, {"hidden_size": -1, "num_hidden_layers": 2, **SIZES},
           {"hidden_size": 64, "num_hidden_layers": 10**30, **SIZES},
           {"hidden_size": [64], "num_hidden_layers": 2, **SIZES}]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pairs(options: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in options.items() for value in values]


@pytest.mark.parametrize(("name", "value"), pairs(OF_COST), ids=lambda text: repr(text[:24]))
def test_cost(refused, name: str, value: str) -> None:
    assert len(refused("cost", name, value)) < 1300


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in OF_RECOMMEND.items() for value in values],
    ids=lambda text: repr(text[:24]),
)
def test_recommend(refused, name: str, value: str) -> None:
    options = {**RECOMMEND, name: value}
    refused("recommend", *(part for pair in options.items() for part in pair))


@pytest.mark.parametrize("arguments", OTHERS, ids=lambda arguments: " ".join(arguments)[:60])
def test_other_commands(refused, arguments: list[str]) -> None:
    refused(*arguments)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:24]))
def test_names_of_new_methods(refused, tmp_path: Path, name: str) -> None:
    """A method called 'torch' or 'class' was once written all the same, and hid the module it is built on."""
    refused("new", name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: json.dumps(config)[:40])
def test_configs_that_describe_no_model(refused, tmp_path: Path, config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "config" in refused("cost", "--config", "config.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b'{"format": 2}', b'{"format": 2, "layers": "x", "samples": [1]}', b'{"format": 99}', b"\xff\xfe"],
)
def test_traces_that_are_none(refused, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trace.json").write_bytes(content)
    assert "trace.json" in refused("cost", "--trace", "trace.json")


@pytest.mark.parametrize(
    ("written", "meant"), [("FASTV", "fastv"), ("Aim", "aim"), ("fast_v", "fastv"), ("PRUMERGE", "prumerge")]
)
def test_a_name_in_other_letters_is_suggested(refused, written: str, meant: str) -> None:
    assert f"Did you mean '{meant}'?" in refused("show", written)


def test_the_names_of_embedded_models_are_said(refused) -> None:
    said = refused("compare", "--methods", "aim", "--model", "embedded:foo", "--plan")
    assert "Did you mean 'embedded:onevision'?" in said and "tokenzoo list" not in said


def test_a_hint_names_an_option_that_the_command_has(refused) -> None:
    line = refused("recommend", "--arch", "vicuna-7b", "--hardware", "a100", "--budget-ms", "9", "--video")
    assert "--tokens" not in line and "--video" in line


def test_one_method_without_a_price_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    from tokenzoo import cli

    assert cli.run(["cost", "--methods", "prumerge,aim,fastv:K=90,random", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"].split(":")[0] for row in found["rows"]] == ["aim", "random"]
    notes = [note for note in found["notes"] if note.startswith("No price for ")]
    assert len(notes) == 2 and "'prumerge' keeps as many tokens as the picture asks for." in notes[0] and "fastv:K=90" in notes[1]
