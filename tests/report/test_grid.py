"""Tables on terminals of any width: no line too long, no digit lost, and what a row is stands in every block."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from rich.text import Text

from tokenzoo import cli
from tokenzoo.report.grid import Head, folded, grid

WIDTHS = (40, 60, 80, 100, 140)
HEADS = [Head(("Method",), text=True), *(Head((title, "measured")) for title in ("Tokens", "Accuracy", "Δ none", "FLOPs"))]
ROWS = [
    ["none", "144.0 100%", "94.0 [89 97]", "–", "924M 100%"],
    ["prumerge:mode=fixed,ratio=0.0859", "47.0 33%", "84.7 [78 90]", "-26.0 [-33 -18]*", "306M 33%"],
]
COMMANDS = {
    "cost": ["cost", "--methods", "none,fastv,aim:retention=0.12345,prumerge:mode=fixed", "--decode", "3"],
    "cost --per-layer": ["cost", "--methods", "fastv", "--per-layer"],
    "cost --list-hardware": ["cost", "--list-hardware", "--list-architectures"],
    "recommend": ["recommend", "--arch", "vicuna-7b", "--hardware", "a100", "--budget-ms", "15"],
    "reproduce": ["reproduce", "aim-iccv2025"],
    "show": ["show", "fastv"],
    "list": ["list"],
    "plugins": ["plugins"],
}


def printed(arguments, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.run(arguments) == 0
    return capsys.readouterr().out


def numbers(text):
    """Every number that stands in a text, however its lines are broken, with how often it does."""
    return Counter(re.findall(r"\d+(?:\.\d+)?", text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_no_line_is_too_long_and_no_digit_is_lost(arguments, width, capsys, monkeypatch):
    wide = printed(arguments, 1000, capsys, monkeypatch)
    text = printed(arguments, width, capsys, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    lost = numbers(wide) - numbers(text)
    together = re.sub(r"\s+", "", text)
    assert all(number in together for number in lost), f"{lost} lost"
    assert not lost or arguments[0] in ("show", "reproduce", "list"), "numbers are folded in sentences alone"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["cost", "recommend", "list"])
def test_a_methods_name_begins_its_row_in_every_block(command, width, capsys, monkeypatch):
    lines = printed(COMMANDS[command], width, capsys, monkeypatch).splitlines()
    blocks = [index for index, line in enumerate(lines) if re.match(r"Method(  |$)", line)] or [0]
    for first, last in zip(blocks, [*blocks[1:], len(lines)], strict=True):
        names = [line.split(":")[0].split("@")[0].split(" ")[0] for line in lines[first:last]]
        assert {"fastv", "aim", "prumerge"} <= set(names), f"{width}: {lines[first:last]}"


@pytest.mark.parametrize("width", [20, *WIDTHS])
def test_numbers_stay_whole_and_columns_part_into_blocks(width):
    lines = grid(HEADS, ROWS, width, gap=1).plain.splitlines()
    assert max(map(len, lines)) <= width
    for row in ROWS:
        for cell in row[1:]:
            assert any(cell in line for line in lines), cell
    blocks = sum(line.startswith("Method") for line in lines)
    assert blocks == {20: 0, 40: 4, 60: 2, 80: 1, 100: 1, 140: 1}[width]
    assert sum(line.startswith("none") for line in lines) == max(blocks, 1)


def test_styles_stay_with_their_cells():
    line = grid(HEADS[:2], [["none", Text("144.0", "bold")]], 80)
    styled = {line.plain[span.start : span.end]: span.style for span in line.spans}
    assert styled["144.0"] == "bold" and not styled.get("none")


def test_names_are_broken_where_they_are_joined():
    assert folded("prumerge:mode=fixed,ratio=0.0859", 20) == ["prumerge:mode=fixed,", "ratio=0.0859"]
    assert folded("a" * 30, 12) == ["a" * 12, "a" * 12, "a" * 6]
    assert folded("one  two\nthree", 8) == ["one two", "three"]
    assert folded("日本語の名前", 4) == ["日本", "語の", "名前"]
    assert folded("", 4) == [""]


def test_text_too_wide_for_columns_is_told_in_records():
    heads = [Head((title,), text=True) for title in ("Method", "What it does", "Hooks")]
    rows = [["aim", "merge similar tokens of each view", "before the projector"], ["none", "the model as it is", ""]]
    assert grid(heads, rows, 30).plain.splitlines() == [
        "aim", "  What it does: merge similar", "  tokens of each view", "  Hooks: before the projector",
        "none", "  What it does: the model as", "  it is",
    ]  # fmt: skip
