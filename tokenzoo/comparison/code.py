"""Digests of code: what a result was computed by. Comments and layout do not count, everything else does."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import tokenzoo

#: The parts of tokenzoo that run and score methods, and what they stand on; the rest only prints or decides what is run.
RUNNING = ("method", "host", "models", "cost", "counting")
RUNNING_FILES = ("comparison/cells.py", *(f"bench/{name}.py" for name in ("evaluate", "timing", "memory", "task")))
_OWN = Path(tokenzoo.__file__).parent


def running_code() -> str:
    """A digest of the code of tokenzoo itself that a result depends on."""
    files = [path for name in RUNNING for path in (_OWN / name).rglob("*.py")]
    files += [_OWN / name for name in RUNNING_FILES] + list(_OWN.glob("appl*.py"))
    return _digest(files)


def benchmark_code() -> str:
    """A digest of the code that hands a benchmark's questions to a model."""
    return _digest((_OWN / "lmms").rglob("*.py"))


def code_of(cls: type) -> str:
    """A digest of all code behind a class that tokenzoo does not hold itself.

    It covers the modules of the class and its ancestors, what these import from places of the user's own, and the whole
    package of an installed plugin, data files included.
    """
    modules = [sys.modules.get(ancestor.__module__) for ancestor in cls.__mro__]
    return _digest(_files([module for module in modules if module is not None]))


def _files(modules: Iterable[ModuleType]) -> set[Path]:
    waiting, files = [path for module in modules if (path := _source(module)) is not None], set()
    packages = {module.__name__.partition(".")[0] for module in modules} - {"tokenzoo", "tokenzoo_plugins", "builtins", "abc"}
    for name in packages:
        for folder in getattr(sys.modules.get(name), "__path__", ()):
            files |= {path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    while waiting:
        path = waiting.pop()
        if path not in files and not _is_library(path, packages):
            files.add(path)
            waiting += _imported(path)
    return files


def _source(module: ModuleType) -> Path | None:
    try:
        return Path(inspect.getsourcefile(module) or "").resolve() if module.__name__ != "builtins" else None
    except TypeError:
        return None  # built in, or typed into an interpreter


def _is_library(path: Path, packages: set[str]) -> bool:
    """Whether a file is tokenzoo's own, Python's, or of an installed distribution other than the plugin's."""
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    # an environment may see the packages of another: --system-site-packages, the user's own, a .pth file
    places |= {Path(entry).resolve() for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    if path.suffix != ".py" or path.is_relative_to(_OWN):
        return True
    for place in places:
        if path.is_relative_to(place):
            return path.relative_to(place).parts[0].removesuffix(".py") not in packages
    return False


def _imported(path: Path) -> Iterator[Path]:
    """The files of the modules that a file imports, inside functions too."""
    module = next((one for one in list(sys.modules.values()) if getattr(one, "__file__", None) == str(path)), None)
    package = getattr(module, "__package__", "") or ""
    for node in ast.walk(_parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [base] * bool(node.module) + [
                f"{base}{'' if base.endswith('.') else '.'}{alias.name}" for alias in node.names
            ]
        for name in names:
            try:
                found = importlib.util.find_spec(name, package or None)
            except (ImportError, ValueError, AttributeError):
                continue  # not a module but a name in one, or not installed
            if found is not None and found.origin and Path(found.origin).is_file():
                yield Path(found.origin).resolve()


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(_content(path, path.stat().st_mtime_ns, path.stat().st_size))
    return digest.hexdigest()[:16]


@cache
def _content(path: Path, _modified: int, _size: int) -> bytes:
    """What counts of a file: a Python file's syntax tree, any other file's bytes."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).digest()
    return hashlib.sha256(ast.dump(_parsed(path)).encode()).digest()


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return ast.parse(repr(path.read_bytes()))  # compare the bytes then
