"""How methods are written on the command line: `name`, `name@preset`, `name:param=value,...`, `a+b`, `a,b`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from tokenzoo.errors import UserError

NAME = r"[A-Za-z][A-Za-z0-9_.-]*"
GRAMMAR = "Write name, name@preset, name:param=value,param=value, or a+b."


@dataclass(frozen=True)
class MethodSpecification:
    """One method with its preset and parameters, as written."""

    name: str
    preset: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> list[MethodSpecification]:
    """Return the methods of one pipeline. Raises UserError where the text is no specification."""
    return [_parse_one(part.strip(), text) for part in split(text, re.compile(rf"\+(?=\s*{NAME}\s*([:@+]|$))"))]


def split_methods(text: str) -> list[str]:
    """Split `aim,fastv:K=3,R=0.5,a+b` into its pipelines: a piece `param=value` belongs to the method before it."""
    pieces: list[str] = []
    for piece in split(text, re.compile(",")):
        if pieces and re.match(r"\s*\w+\s*=", piece):
            pieces[-1] += "," + piece
        else:
            pieces.append(piece.strip())
    if not all(pieces):
        raise UserError(f"'{text}' names an empty method. Separate methods by single commas.")
    return pieces


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at the separator, not inside brackets or quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    position = 0
    while position < len(text):
        character = text[position]
        found = separator.match(text, position) if not depth and not quote else None
        if found:
            pieces.append(text[start:position])
            position = start = found.end()
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        position += 1
    pieces.append(text[start:])
    return pieces


def _parse_one(part: str, whole: str) -> MethodSpecification:
    match = re.fullmatch(rf"({NAME})(?:@([\w.-]+))?(?::(.*))?", part, re.DOTALL)
    if not match:
        raise UserError(f"'{whole}' is no method specification{f' (at {part!r})' if part != whole else ''}. {GRAMMAR}")
    name, preset, rest = match.groups()
    parameters: dict[str, Any] = {}
    for assignment in split(rest, re.compile(",")) if rest is not None else []:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"'{assignment.strip()}' in '{whole}' is no param=value. Run 'tokenzoo show {name}'.")
        if key in parameters:
            raise UserError(f"Parameter '{key}' stands twice in '{whole}'.")
        parameters[key] = _value(value, key, whole)
    return MethodSpecification(name, preset or "", parameters)


def _value(text: str, key: str, whole: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"The value {text[:40]!r} of '{key}' in '{whole}' cannot be read. Write it as in YAML.") from None
