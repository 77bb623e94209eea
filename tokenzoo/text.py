"""Text as it may reach a terminal: on one line, without control characters, in the characters that the terminal has."""

from __future__ import annotations

import codecs
import re
import sys
from typing import Any

#: What our tables and messages use outside ASCII, for terminals that have ASCII alone.
ASCII = {
    "–": "-", "—": "-", "×": "x", "±": "+-", "Δ": "diff", "≥": ">=", "≤": "<=", "²": "^2", "…": "...", "·": "*", "→": "->",
    "√": "sqrt", "Σ": "sum", "∈": "in", "’": "'", "“": '"', "”": '"', "•": "*", "−": "-",
}  # fmt: skip
_HANDLER = "tokenzoo.ascii"
#: Control characters, and those that turn the direction of writing; a line break and a tab may stay in a text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with its control characters written out (`\x1b`): a file's name can then not steer the terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The text on one line, control characters written out."""
    return visible(" ".join(text.split()))


def ascii_only(text: str) -> str:
    """The text in ASCII, with what comes nearest to each other character."""
    return text.encode("ascii", _HANDLER).decode("ascii")


def printable(text: str) -> str:
    """The text in the characters that the standard output has, with what comes nearest to each other one."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, _HANDLER).decode(encoding)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(ASCII.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _nearest)


def accept_any_terminal() -> None:
    """Let the standard streams print what their encoding lacks as what comes nearest, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure and not (stream.encoding or "").lower().startswith("utf"):
            reconfigure(errors=_HANDLER)
