"""A plugin that would end the program is a named failure, at import and while it works; a real Ctrl-C still ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tokenzoo import cli
from tokenzoo.zoo.errors import PluginError, kept_from_ending

METHOD = """
from dataclasses import dataclass
import sys
from tokenzoo import TokenReducer
@dataclass
class Ending(TokenReducer):
    name = "ending"
    def kept(self, entered, layers):
        return {{1: entered // 10}}
    def score_flops(self, tokens, architecture):
        return 0
    def score(self, layer):
        {hook}
def deep(n):
    return deep(n + 1)
{top}
"""
WAYS = ["sys.exit(0)", "sys.exit('bye')", "raise SystemExit", "raise KeyboardInterrupt", "exit(3)", "deep(0)"]


def plugin(tmp_path, hook="return None", top=""):
    path = tmp_path / "ending.py"
    path.write_text(METHOD.format(hook=hook, top=top))
    return ["--plugin", str(path)]


@pytest.mark.parametrize("way", WAYS)
def test_at_import_the_others_are_listed_all_the_same(tmp_path, capsys, way):
    with pytest.warns(UserWarning, match=r"'ending' is not used: .*ending.py, line"):
        assert cli.run([*plugin(tmp_path, top=way), "list"]) == 0
    assert "fastv" in capsys.readouterr().out


@pytest.mark.parametrize("way", WAYS)
def test_in_compare_it_is_a_failed_row(tmp_path, capsys, monkeypatch, way):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    options = ["--model", "embedded:llava", "--tasks", "attribute", "--limit", "1", "--no-timing", "--format", "json"]
    code = cli.run([*plugin(tmp_path, hook=way), "compare", "--methods", "ending,fastv", *options])
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["sections"][0]["rows"]}
    assert code == 1 and rows["fastv"]["status"] == "ok"
    assert rows["ending"]["status"] == "failed" and "(task attribute)" in rows["ending"]["note"]


@pytest.mark.parametrize("way", WAYS[:-1])
def test_in_run_and_check_it_is_one_line(tmp_path, capsys, way):
    picture = tmp_path / "a.png"
    Image.new("RGB", (96, 96)).save(picture)
    started = plugin(tmp_path, hook=way)
    assert cli.run([*started, "run", "what color ?", "--image", str(picture), "--method", "ending"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Error: ") and "tried to end the program" in said and "ending.py, line" in said
    assert cli.run([*started, "check", "ending", "--family", "llava", "--backend", "sdpa"]) == 1


def test_check_of_a_file_that_exits_says_so(tmp_path, capsys):
    path = plugin(tmp_path, top="sys.exit(0)")[1]
    assert cli.run(["check", path]) == 1
    assert "tried to end the program" in capsys.readouterr().out


def test_a_real_interrupt_goes_through():
    with pytest.raises(KeyboardInterrupt), kept_from_ending(), kept_from_ending():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(PluginError), kept_from_ending(), kept_from_ending():
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_real_interrupt_ends_the_command(tmp_path):
    wait = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    path = tmp_path / "slow.py"
    path.write_text(wait)
    command = [sys.executable, "-m", "tokenzoo", "--plugin", str(path), "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.strip() == "Interrupted."
