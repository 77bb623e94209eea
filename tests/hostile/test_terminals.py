"""Terminals and streams that are full, narrow, closed or of another alphabet."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenzoo import cli

FULL = Path("/dev/full")
PRINTING = (["list"], ["show", "aim"], ["cost"], ["plugins"], ["reproduce", "aim-iccv2025"], ["recommend", "--arch", "vicuna-7b",
            "--hardware", "a100", "--budget-ms", "10"], ["cost", "--format", "json"], ["cost", "--list-hardware"])  # fmt: skip


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_full_disk_behind_the_output(refused_in_a_process, arguments: list[str]) -> None:
    with FULL.open("w") as full:
        line = refused_in_a_process(*arguments, stdout=full)
    assert line == "Error: Cannot write the output: No space left on device."


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "iso8859-5"])
@pytest.mark.parametrize("arguments", PRINTING[:6], ids=" ".join)
def test_terminals_of_other_alphabets(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.run(arguments) == 0
    out.seek(0)
    printed = out.read()
    assert "aim" in printed and max(map(len, printed.splitlines())) <= 60


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "1e9", "9" * 20, "٣"])
def test_terminals_that_do_not_know_their_width(columns: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["list"], ["cost"]):
        assert cli.run(arguments) == 0
        printed = capsys.readouterr()
        assert "fastv" in printed.out and printed.err == ""


@pytest.mark.parametrize("arguments", [["cost"], ["list"], ["show", "aim"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    """`tokenzoo cost | head -1` once said that a plugin had tried to end the program."""
    command = [sys.executable, "-m", "tokenzoo", *arguments]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, env={**os.environ, "TOKENZOO_LOAD_PLUGINS": ""})
    assert done.returncode in (1, 141) and done.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_error_in_another_alphabet(refused_in_a_process, encoding: str) -> None:
    assert "'???'" in refused_in_a_process("show", "日本語", environment={"PYTHONIOENCODING": encoding})


def test_what_ascii_lacks_is_written_as_what_comes_nearest() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TOKENZOO_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-m", "tokenzoo", "show", "fastv"], capture_output=True, env=environment, text=True)
    assert "integer >= 1" in done.stdout


@pytest.mark.parametrize(
    "name", ["a\x1b[31mred", "\x1b]0;title\x07", "bell\x07", "back\x08space", "line\nbreak", "re\rturn", "‮rtl"]
)
@pytest.mark.parametrize(
    "arguments",
    [["show"], ["cost", "--methods"], ["cost", "--config"], ["cost", "--arch"], ["--registry"], ["--plugin"], ["new"]],
    ids=" ".join,
)  # fmt: skip
def test_no_control_character_of_a_name_reaches_the_terminal(refused, arguments: list[str], name: str) -> None:
    line = refused(*arguments, name, *(["list"] if arguments[0].startswith("--") else []))
    assert line.isprintable(), repr(line)


def test_a_folder_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a\x1b[31mfolder"
    assert cli.run(["new", "my-method", "--dir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert r"a\x1b[31mfolder" in printed.out and "\x1b" not in printed.out + printed.err


def test_a_broken_plugin_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "a\x1b[31mplugin.py"
    plugin.write_text("raise ValueError('\\x1b[31mred')")
    for command in ("list", "plugins"):
        assert cli.run(["--plugin", str(plugin), command]) == 0
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
