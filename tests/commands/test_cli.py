"""The command line: quick, lazy, and wrong use answered in one line."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tokenzoo import cli as module
from tokenzoo.cli import COMMANDS, cli
from tokenzoo.errors import FailedError, UserError

QUICK = [["--help"], ["list"], ["show", "aim"], ["plugins"]]


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "TOKENZOO_LOAD_PLUGINS": "", **environment}
    command = [sys.executable, "-m", "tokenzoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_quick_commands_import_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys; from tokenzoo.cli import run; code = run(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    settings = {**os.environ, "TOKENZOO_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr


def test_every_command_is_where_the_group_says() -> None:
    for name in COMMANDS:
        found = importlib.import_module(f"tokenzoo.commands.{name.replace('-', '_')}").command
        assert isinstance(found, click.Command)
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_help_lists_every_command_without_importing_one() -> None:
    before = set(sys.modules)
    result = CliRunner().invoke(cli, ["--help"])
    assert all(name in result.output and about in " ".join(result.output.split()) for name, about in COMMANDS.items())
    assert not {name for name in set(sys.modules) - before if name.startswith("tokenzoo.commands.")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shw"], "No such command 'shw'. Did you mean 'show'?"),
        (["show", "fastvv"], "Error: Unknown method 'fastvv'. Did you mean 'fastv'? Run 'tokenzoo list'.\n"),
        (["show", "fastv:K=3"], "show takes a method's name. Run 'tokenzoo show fastv'.\n"),
        (["show"], "Missing argument 'METHOD'"),
        (["check", "nothing.py"], "there is no file"),
        (["--registry", "nothing.yaml", "list"], "Error: Cannot read registry 'nothing.yaml': No such file"),
        (["check", "aim", "--family", "lava"], "Did you mean 'llava'?"),
        (["check", "aim", "--device", "cuda:99"], "Error: There is no device 'cuda:99' here. Choose cpu"),
        (["new", "My Method"], "is no method name"),
        (["new", "aim"], "The name 'aim' is taken by tokenzoo"),
    ],
)
def test_wrong_use_is_answered_without_traceback(arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def a_command(monkeypatch: pytest.MonkeyPatch):
    """Make `tokenzoo list` raise something."""

    def make(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            if isinstance(error, KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # as Ctrl-C does; one that is only raised is a plugin's
            raise error

        monkeypatch.setattr(importlib.import_module("tokenzoo.commands.list"), "command", command)

    return make


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no\nsuch thing."), 2, "Error: no such thing.\n"),
        (FailedError("it broke."), 1, "Error: it broke.\n"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_exit_codes(a_command, capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str) -> None:
    a_command(error)
    assert module.run(["list"]) == code
    assert capsys.readouterr().err.strip().endswith(words.strip())


def test_bugs_keep_their_traceback(a_command) -> None:
    a_command(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        module.run(["list"])


def test_list_and_show() -> None:
    rows = json.loads(call("list", "--format", "json").stdout)
    assert {"aim", "none", "prumerge_plus"} <= {row["name"] for row in rows}
    shown = call("show", "fastv", COLUMNS="100").stdout
    for part in ("fastv:", "inside the LLM", "Parameters", "integer ≥ 1", "Presets", "arxiv.org/abs/2403.06764", "Faithful"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_plugins_shows_versions_and_failures() -> None:
    broken = Path(__file__).parents[1] / "broken_plugins"
    files = [part for file in sorted(broken.glob("*.py")) for part in ("--plugin", str(file))]
    shown = call(*files, "plugins", COLUMNS="140").stdout
    assert "tokenzoo 0.1.0" in shown
    for name in ("cannot_import", "bad_signature", "misspelt_hook", "taken_name", "other_version"):
        assert name in shown
    assert "No module named" in shown
    listed = call(*files, "list")
    assert listed.returncode == 0 and "duplicates" in listed.stdout and "cannot be used: " in listed.stderr


def test_show_tells_why_a_method_failed() -> None:
    file = Path(__file__).parents[1] / "broken_plugins" / "cannot_import.py"
    done = call("--plugin", str(file), "show", "cannot_import")
    assert done.returncode == 2
    assert "could not be loaded: ModuleNotFoundError" in done.stderr


def test_a_registry_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("methods: {fastv: {presets: {mild: {parameters: {R: 0.1}, description: mine}}}}")
    assert "mild" in call("--registry", str(path), "show", "fastv").stdout
    assert "mild" in call("show", "fastv", TOKENZOO_REGISTRY=str(path)).stdout


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m tokenzoo show aim | head -1", shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_new_writes_where_it_is_told(tmp_path: Path) -> None:
    done = call("new", "my-method", "--dir", str(tmp_path / "there"))
    assert done.returncode == 0 and (tmp_path / "there" / "my_method.py").exists()
    again = call("new", "my-method", "--dir", str(tmp_path / "there"))
    assert again.returncode == 2 and "exists and is not empty" in again.stderr


def test_broken_plugins_do_not_disturb_a_comparison(tmp_path: Path) -> None:
    broken = Path(__file__).parents[1] / "broken_plugins"
    files = [part for name in ("raises", "not_a_number", "cannot_import") for part in ("--plugin", str(broken / f"{name}.py"))]
    options = [
        "--as-published",
        "--model",
        "embedded:llava",
        "--limit",
        "2",
        "--no-timing",
        "--as-published",
        "--store",
        str(tmp_path / "store.sqlite"),
    ]
    done = call(*files, "compare", "--methods", "uniform,raises,not_a_number", *options, "--format", "csv", OMP_NUM_THREADS="1")
    assert done.returncode == 1
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert rows["uniform"]["status"] == rows["none"]["status"] != rows["raises"]["status"]
    assert float(rows["uniform"]["accuracy"]) > 0
    assert "KeyError: 'no such key'" in rows["raises"]["note"]
    assert "features hold NaN or infinity" in rows["not_a_number"]["note"]
