"""registry.yaml: what ships (methods, architectures, hardware), and registries of the same form that users add.

Every wrong entry is reported with its file and line. Nothing here imports a method or torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenzoo.errors import UserError, unknown
from tokenzoo.yaml_file import Document, children, first_problem, parse_yaml, read_yaml

#: Further registry files, separated as in PATH.
ENVIRONMENT = "TOKENZOO_REGISTRY"


class Strict(BaseModel):
    """A section whose keys are all known; what else stands there is a mistake."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class Paper(BaseModel):
    """Where a method was published, and the code it was checked against."""

    model_config = ConfigDict(extra="allow", defer_build=True)
    title: str = ""
    arxiv: str = ""
    venue: str = ""
    code: str = ""


class Preset(Strict):
    """A named setting: the official defaults, or the settings of one row of a published table."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    description: str = ""


class Method(Strict):
    """One method. Only the registry that ships names a `module`; others describe what plugins define, or add presets."""

    module: str = ""
    title: str = ""
    summary: str = ""
    paper: Paper | None = None
    faithfulness: str = ""
    presets: dict[str, Preset] = Field(default_factory=dict)
    published: list[dict[str, Any]] = Field(default_factory=list)


class Contents(Strict):
    """One registry file."""

    methods: dict[str, Method] = Field(default_factory=dict)
    architectures: dict[str, dict[str, Any]] = Field(default_factory=dict)
    hardware: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass
class Registry:
    """The union of all registry files read so far, and where each entry was read."""

    methods: dict[str, Method] = field(default_factory=dict)
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)
    hardware: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)

    def preset(self, method: str, name: str) -> Preset:
        """Return a method's preset; raises UserError where there is none of that name."""
        presets = self.methods[method].presets if method in self.methods else {}
        if name not in presets:
            if not presets:
                raise UserError(f"Method '{method}' has no presets, so no '{name}'. Run 'tokenzoo show {method}'.")
            raise unknown(f"preset of '{method}'", name, presets, f"tokenzoo show {method}")
        return presets[name]

    def add(self, contents: Contents, origin: str, lines: dict[tuple[str, str], int] | None = None, ships: bool = False) -> None:
        """Add one file's entries. Raises UserError, and adds nothing, where a name is taken.

        Only the registry that `ships` may name code: reading a file that somebody sent must not run any.
        """
        where = {key: f"{origin}:{line}" for key, line in (lines or {}).items()}
        additions: list[tuple[str, str, Any]] = []
        for section in ("methods", "architectures", "hardware"):
            present = getattr(self, section)
            for name, entry in getattr(contents, section).items():
                if section == "methods" and entry.module and not ships:
                    raise UserError(
                        f"{where.get((section, name), origin)}: methods.{name}.module: a registry names no code. "
                        f"Leave it out, and load the method with --plugin FILE or as an installed distribution."
                    )
                if name in present:
                    entry = self._extended(section, name, entry, where.get((section, name), origin))
                additions.append((section, name, entry))
        for section, name, entry in additions:
            getattr(self, section)[name] = entry
            self.origins.setdefault((section, name), where.get((section, name), origin))

    def _extended(self, section: str, name: str, entry: Any, where: str) -> Any:
        present = getattr(self, section)[name]
        taken = f"{where}: {section}.{name} is already defined at {self.origins.get((section, name), 'another place')}."
        if section != "methods":
            raise UserError(taken)
        for preset in entry.presets:
            if preset in present.presets:
                raise UserError(f"{where}: preset '{preset}' of '{name}' exists already. Choose another name.")
        return present.model_copy(
            update={
                "presets": {**present.presets, **entry.presets},
                "published": [*present.published, *entry.published],
            }
        )


def builtin_path() -> Path:
    """The registry.yaml that ships: inside the package when installed, at the top of a source tree otherwise."""
    package = Path(__file__).parents[1]
    for path in (package / "registry.yaml", package.parent / "registry.yaml"):
        if path.is_file():
            return path
    raise UserError("registry.yaml is missing from this installation. Run 'pip install --force-reinstall tokenzoo'.")


def environment_paths() -> list[Path]:
    """The files that TOKENZOO_REGISTRY names."""
    return [Path(path) for path in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if path]


_configured: tuple[Path, ...] = ()


def configure(files: Iterable[str | Path]) -> None:
    """Set the registry files that are read where none are given: the command line's --registry."""
    global _configured
    _configured = tuple(map(Path, files))


def configured() -> tuple[Path, ...]:
    """The registry files set last."""
    return _configured


def load_registry(extra: Sequence[Path] | None = None) -> Registry:
    """Read the built-in registry, those that TOKENZOO_REGISTRY names, and `extra` (None: the configured ones).

    What plugins add is not in it; `load_zoo().registry` holds that too.
    """
    registry = Registry()
    registry.add(*_builtin(), ships=True)
    for path in [*environment_paths(), *(_configured if extra is None else extra)]:
        contents, lines = read_registry(Path(path))
        registry.add(contents, str(path), lines)
    return registry


def _builtin() -> tuple[Contents, str, dict[tuple[str, str], int]]:
    """The registry that ships, taken as it is: a test checks it, and every quick command would pay for checking."""
    path = builtin_path()
    document = parse_yaml(path.read_text(encoding="utf-8"), path, trusted=True)
    methods = {}
    for name, entry in document.data["methods"].items():
        presets = {key: Preset.model_construct(**preset) for key, preset in entry.get("presets", {}).items()}
        paper = Paper.model_construct(**entry["paper"]) if "paper" in entry else None
        methods[name] = Method.model_construct(**{**entry, "presets": presets, "paper": paper})
    return Contents.model_construct(**{**document.data, "methods": methods}), str(path), _lines(document)


def read_registry(path: Path) -> tuple[Contents, dict[tuple[str, str], int]]:
    """Read and check one file; returns its contents and the line of each entry."""
    document = read_yaml(path, "registry")
    return document.checked(Contents), _lines(document)


def _lines(document: Document) -> dict[tuple[str, str], int]:
    """The line of each entry of each section."""
    return {(section, name): line for section, node, _ in children(document.root) for name, _, line in children(node)}


def check_fragment(data: Any, origin: str) -> Contents:
    """Check a registry fragment that a plugin returned from `tokenzoo_registry`."""
    try:
        return Contents.model_validate(data)
    except ValidationError as error:
        location, problem = first_problem(error)
        raise UserError(f"{origin}: tokenzoo_registry: {'.'.join(map(str, location))}: {problem}.") from None
