"""Errors that a user can mend; the command line prints their message alone, bugs keep their traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for is wrong or impossible.

    The message is one line: what is wrong, the choices, the next command.
    `exit_code` is 2 for wrong use and 1 for work that failed.
    """

    exit_code = 2


class FailedError(UserError):
    """The request was right, but the work failed (a method raised, a file could not be written)."""

    exit_code = 1


class UnsupportedError(UserError):
    """A combination of model, method and call that cannot work; the message says why and what to do."""


def unknown(kind: str, name: str, choices: Iterable[str], command: str) -> UserError:
    """Return the error for a name that does not exist: a suggestion where one is close, else the choices."""
    known = sorted(choices)
    lowered = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    hint = f"Did you mean '{lowered[close[0]]}'?" if close else f"Choose from: {', '.join(known)}."
    return UserError(f"Unknown {kind} '{name}'. {hint} Run '{command}'.")
