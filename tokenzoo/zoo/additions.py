"""What one plugin adds: a class, a module of classes, or an object with registration hooks, each checked as it is read."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from tokenzoo.method.reducer import TokenReducer
from tokenzoo.zoo.errors import PluginError
from tokenzoo.zoo.hookspecs import PROJECT, RunHooks
from tokenzoo.zoo.registry import Contents, check_fragment


@dataclass
class Additions:
    """What one plugin adds."""

    classes: list[type[TokenReducer]] = field(default_factory=list)
    families: list[Any] = field(default_factory=list)
    tasks: list[Any] = field(default_factory=list)
    fragment: Contents = field(default_factory=Contents)
    observers: list[Any] = field(default_factory=list)


def additions_of(loaded: Any, name: str, origin: str, manager: pluggy.PluginManager) -> Additions:
    """What a plugin adds: by its hooks, or as a class or a module of classes."""
    if inspect.isclass(loaded) and issubclass(loaded, TokenReducer):
        return Additions(classes=[loaded])
    check_version(getattr(loaded, "requires_tokenzoo", ""))
    _check_marked(loaded)
    manager.register(loaded, name=name)
    manager.check_pending()
    additions = Additions(
        classes=_returned(manager, loaded, "tokenzoo_methods", list),
        families=_returned(manager, loaded, "tokenzoo_families", list),
        tasks=_returned(manager, loaded, "tokenzoo_tasks", list),
        fragment=check_fragment(_returned(manager, loaded, "tokenzoo_registry", dict), origin),
    )
    run_time = {name for name in vars(RunHooks) if name.startswith(PROJECT)}
    if any(caller.name in run_time for caller in manager.get_hookcallers(loaded) or ()):
        additions.observers = [loaded]
    if isinstance(loaded, ModuleType) and not hasattr(loaded, "tokenzoo_methods"):
        additions.classes = reducers_in(loaded)
        if not additions.classes and not manager.get_hookcallers(loaded):
            raise PluginError("it adds nothing: no TokenReducer with a name, and no @tokenzoo.hookimpl function.")
    return additions


def reducers_in(module: Any) -> list[type[TokenReducer]]:
    """The methods that a module itself defines (not those it imports), in the order they are written."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, TokenReducer) and value.__module__ == module.__name__ and value.name
    ]


def import_file(path: str | Path) -> ModuleType:
    """Import a single file as a module of its own; raises PluginError where there is none."""
    path = Path(path).resolve()
    if not path.is_file():
        raise PluginError(f"there is no file '{path}'.")
    if path.suffix != ".py":
        raise PluginError(f"'{path.name}' is no Python file (.py).")
    digest = hashlib.sha1(str(path).encode()).hexdigest()[:8]
    name = f"tokenzoo_file_{path.stem.replace('-', '_')}_{digest}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise PluginError(f"'{path}' cannot be imported.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def check_version(required: str) -> None:
    if not required:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    from tokenzoo import __version__

    try:
        fits = SpecifierSet(str(required)).contains(__version__, prereleases=True)
    except InvalidSpecifier:
        raise PluginError(f"requires_tokenzoo = {required!r} is no version specifier such as '>=0.1'.") from None
    if not fits:
        raise PluginError(f"it needs tokenzoo {required}, this is {__version__}. Upgrade one of them.")


def _check_marked(loaded: Any) -> None:
    """pluggy passes over functions without the marker in silence."""
    for name in dir(loaded):
        if name.startswith(f"{PROJECT}_"):
            value = getattr(loaded, name, None)
            ours = not inspect.ismodule(value) and not inspect.isclass(value)
            if callable(value) and ours and not hasattr(value, f"{PROJECT}_impl"):
                raise PluginError(f"function '{name}' lacks the @tokenzoo.hookimpl decorator.")


def _returned(manager: pluggy.PluginManager, loaded: Any, hook: str, kind: type) -> Any:
    """Call one registration hook of one plugin."""
    caller = getattr(manager.hook, hook)
    for implementation in caller.get_hookimpls():
        if implementation.plugin is loaded:
            result = implementation.function()
            if result is None:
                return kind()
            if not isinstance(result, kind) and not (kind is list and isinstance(result, tuple)):
                raise PluginError(f"{hook} must return a {kind.__name__}, not {type(result).__name__}.")
            return kind(result)
    return kind()
