"""YAML files that users write: read within limits, refused with file and line, checked against a pydantic model.

Registries and the settings of a comparison are read here alone, so that a mistake in either is told in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tokenzoo.errors import UserError

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: The largest file, in bytes; the registry that ships has 32,000.
LARGEST = 1_000_000
#: How deep mappings and lists may stand in each other.
DEEPEST = 20
#: How many values a file may have, with what an alias stands for counted wherever it stands.
MOST_VALUES = 200_000

NO_SUCH_KEY = "there is no such key here"
Checked = TypeVar("Checked", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A file's data, and where each value stands in it."""

    path: Path
    data: Any
    root: yaml.Node | None
    what: str = "file"

    def line(self, location: Iterable[str | int] = ()) -> int:
        """The line (from 1) of the deepest part of `location` that the file has."""
        node, line = self.root, 1
        for part in location:
            found = next((entry for entry in children(node) if entry[0] == str(part)), None)
            if found is None:
                break
            _, node, line = found
        return line

    def checked(self, model: type[Checked], given: Mapping[str, Any] | None = None) -> Checked:
        """The data as a `model`, `given` values before the file's; raises UserError with file and line."""
        data = {} if self.data is None else self.data
        if not isinstance(data, dict):
            raise UserError(f"{self.path}:1: a {self.what} is a mapping; its keys are {', '.join(model.model_fields)}.")
        try:
            return model.model_validate({**data, **(given or {})})
        except ValidationError as error:
            location, problem = first_problem(error)
            where = ".".join(map(str, location))
            if problem == NO_SUCH_KEY and len(location) == 1:
                problem = f"{problem}; choose from {', '.join(model.model_fields)}"
            raise UserError(f"{self.path}:{self.line(location)}: {f'{where}: ' if where else ''}{problem}.") from None


def read_yaml(path: Path, what: str) -> Document:
    """Read a file that is `what` ("registry", "config"); raises UserError with file and line for what is no such YAML."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise UserError(f"Cannot read {what} '{path}': it has more than {LARGEST // 1000:,} kB. Split it.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"Cannot read {what} '{path}': {reason}.") from None
    return replace(parse_yaml(text, path), what=what)


def parse_yaml(text: str, path: Path, trusted: bool = False) -> Document:
    """Read YAML text of the file `path`; raises UserError with the line of what is wrong.

    A `trusted` text is not held against the limits, which takes as long as reading it.
    """
    try:
        if not trusted:
            _refuse_depth(text, path)
        loader = SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is not None and not trusted:
                _values(root, path, {}, ())
                _refuse_unreadable(root, path, loader)
            return Document(path, None if root is None else loader.construct_document(root), root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: {problem}.") from None


def _refuse_depth(text: str, path: Path) -> None:
    """Refuse deep nesting from the events, before a node is made: making one goes as deep as the file does."""
    depth = 0
    for event in yaml.parse(text, SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > DEEPEST:
                raise UserError(f"{path}:{event.start_mark.line + 1}: more than {DEEPEST} levels stand in each other.")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


def _values(node: yaml.Node, path: Path, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for; refuses one that holds itself, equal keys, and too many values."""
    if id(node) in above:
        raise UserError(f"{path}:{node.start_mark.line + 1}: a value stands inside itself.")
    if id(node) not in known:
        seen: dict[str, int] = {}
        total = 1
        for key, value, line in children(node):
            if isinstance(node, yaml.MappingNode) and key != "<<" and seen.setdefault(key, line) != line:
                raise UserError(f"{path}:{line}: '{key}' stands here a second time (first in line {seen[key]}).")
            total += _values(value, path, known, (*above, id(node)))
        if total > MOST_VALUES:
            raise UserError(f"{path}:{node.start_mark.line + 1}: aliases make more than {MOST_VALUES:,} values of this.")
        known[id(node)] = total
    return known[id(node)]


def _refuse_unreadable(root: yaml.Node, path: Path, loader: Any) -> None:
    """Refuse what looks like a number or a date and is none: PyYAML lets Python's own error through."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            try:
                loader.construct_object(node)
            except (ValueError, OverflowError):
                shown = node.value if len(node.value) <= 20 else f"{node.value[:20]}…"
                raise UserError(f"{path}:{node.start_mark.line + 1}: the value '{shown}' cannot be read.") from None
        else:
            parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
            waiting += [part for part in parts if id(part) not in seen]
            seen |= set(map(id, parts))


def children(node: yaml.Node | None) -> Iterable[tuple[str, yaml.Node, int]]:
    """Each entry of a mapping or list: its key as text, its node, and the line (from 1) it starts at."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value, value.start_mark.line + 1


def first_problem(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where a model's first mistake stands, and what it is, without capital and full stop."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return first["loc"], NO_SUCH_KEY
    message = str(first["msg"]).removeprefix("Value error, ").removesuffix(".")
    keeps_capital = message[:2] == message[:2].upper()
    return first["loc"], message if keeps_capital else message[:1].lower() + message[1:]
