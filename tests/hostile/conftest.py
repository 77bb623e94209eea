"""Hostile input: every mistake is answered in one line, with exit code 1 or 2, without a traceback, within ten seconds."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tokenzoo import cli
from tokenzoo.zoo import plugins

#: Of the processor's time, since a busy machine makes everything late; WAITING is of the clock, for what hangs without working.
SECONDS, WAITING = 10, 120
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def a_fresh_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin of this machine is loaded, and no zoo of another test is met again."""
    monkeypatch.setenv("TOKENZOO_LOAD_PLUGINS", "")
    monkeypatch.setattr(plugins, "_cache", {})


@pytest.fixture
def refused() -> Refused:
    """Run the command line in this process, hold its answer against the rules, and return the line it printed."""

    def run(*arguments: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), _limited(arguments):
            warnings.simplefilter("ignore", plugins.PluginWarning)  # what else is wrong with a plugin is said beside it
            try:
                code: Any = cli.run(list(arguments))
            except SystemExit as stop:
                code = stop.code
            except Exception:
                pytest.fail(f"{arguments} ends in a traceback:\n{traceback.format_exc()}")
        return _held(arguments, code, err.getvalue())

    return run


@pytest.fixture
def refused_in_a_process() -> Refused:
    """As `refused`, in a process of its own, where streams, encodings and limits are real.

    `environment` is added to the variables; other options are those of subprocess.run.
    """

    def run(*arguments: str, environment: dict[str, str] | None = None, **options: Any) -> str:
        command = [sys.executable, "-m", "tokenzoo", *arguments]
        variables = {**os.environ, **(environment or {})}
        options = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        options |= {} if sys.platform == "win32" else {"preexec_fn": _in_time}
        done = subprocess.run(command, stderr=subprocess.PIPE, env=variables, timeout=WAITING, **options)
        return _held(arguments, done.returncode, done.stderr.decode(errors="replace"))

    return run


def _held(arguments: tuple[str, ...], code: Any, err: str) -> str:
    assert code in (1, 2), f"{arguments} ends with {code!r}: {err}"
    assert "Traceback" not in err, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, f"{arguments} prints {len(lines)} lines:\n{err}"
    assert lines[0].startswith("Error: "), lines[0]
    assert "\x1b" not in lines[0] and "\r" not in lines[0], repr(lines[0])
    return lines[0]


@contextlib.contextmanager
def _limited(arguments: tuple[str, ...]) -> Iterator[None]:
    """Fail a test that needs more of the processor's time than it may, where the system has such alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: Any) -> None:
        raise TimeoutError(f"{arguments} took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _in_time() -> None:
    """Let the system end this process after its seconds; where there are no such limits the timeout alone holds."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
