"""Why a plugin cannot be used, in one line."""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pluggy

from tokenzoo.errors import UserError
from tokenzoo.zoo.hookspecs import PROJECT, RegistrationHooks, RunHooks


class PluginError(Exception):
    """Why a plugin cannot be used."""


#: Whether Ctrl-C was pressed; a KeyboardInterrupt without it was raised by a plugin.
_pressed = threading.Event()


@contextmanager
def kept_from_ending() -> Iterator[None]:
    """Code of plugins runs in this block: what would end the program becomes a PluginError, but a real Ctrl-C does not."""
    watches = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if watches and before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    except SystemExit as error:
        raise PluginError(f"it tried to end the program: {reason(error)}") from error
    except KeyboardInterrupt as error:
        if _pressed.is_set() or not watches:
            raise
        raise PluginError(f"it tried to end the program: {reason(error)}") from error
    finally:
        if watches and before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)
            _pressed.clear()


def _on_interrupt(*_: Any) -> None:
    _pressed.set()
    raise KeyboardInterrupt


def reason(error: BaseException) -> str:
    """One line that says what went wrong, with the place in the plugin for what is a bug of its."""
    text = " ".join(str(error).split())
    if isinstance(error, pluggy.PluginValidationError):
        return _say_validation(text)
    if isinstance(error, (PluginError, UserError)):
        return text
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if not str(file).startswith("<") and "importlib" not in file.parts and not _is_loader(file):
            place = f" ({file.name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError):
        place = f" ({Path(error.filename or '?').name}, line {error.lineno})"
        text = error.msg
    return f"{type(error).__name__}: {text}{place}."


def _say_validation(text: str) -> str:
    """pluggy's message for a hook that does not exist or has other arguments, with the right one."""
    hooks = [name for spec in (RunHooks, RegistrationHooks) for name in vars(spec) if name.startswith(PROJECT)]
    unknown_hook = re.search(r"unknown hook '(\w+)'", text)
    if unknown_hook:
        close = difflib.get_close_matches(unknown_hook[1], hooks, n=1, cutoff=0.6)
        hint = f"Did you mean '{close[0]}'?" if close else f"Choose from: {', '.join(hooks)}."
        return f"'{unknown_hook[1]}' is no hook. {hint}"
    return text.split(" definition: ")[-1].rstrip(".") + "."


def _is_loader(file: Path) -> bool:
    """Whether a file is one of those that load plugins: what fails below them is the plugin's."""
    return file.parent == Path(__file__).parent and file.name in ("plugins.py", "additions.py", "errors.py")
