"""Finding methods and other additions: built-ins, installed distributions and single files, each on its own.

A plugin that cannot be used is rolled back whole and remembered in `Zoo.failures` with the reason; it never keeps
another from working. Asking for what it would have added tells why it is not there.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from tokenzoo.errors import UserError, unknown
from tokenzoo.method.parameters import check_names
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import check_class
from tokenzoo.zoo import registry
from tokenzoo.zoo.additions import Additions, additions_of, check_version, import_file, reducers_in
from tokenzoo.zoo.errors import PluginError, kept_from_ending, reason
from tokenzoo.zoo.hookspecs import PROJECT, RegistrationHooks, RunHooks
from tokenzoo.zoo.registry import Registry, load_registry
from tokenzoo.zoo.specification import MethodSpecification, parse

GROUP = "tokenzoo"
#: Names of the entry points that may be loaded, separated by commas; empty for none.
ALLOWLIST = "TOKENZOO_LOAD_PLUGINS"


class PluginWarning(UserWarning):
    """A plugin could not be used; the rest goes on."""


@dataclass(frozen=True)
class Plugin:
    """Where something came from. `distribution` is "tokenzoo", a distribution's name, or "" for a single file."""

    name: str
    kind: str
    entry: str
    distribution: str = ""
    version: str = ""

    @property
    def origin(self) -> str:
        """`tokenzoo 0.1.0`, `my-method 1.2` or the file."""
        return f"{self.distribution} {self.version}".strip() or self.entry


@dataclass
class Zoo:
    """Everything that could be loaded, and what could not, with the reasons."""

    registry: Registry
    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    _families: list[Any] = field(default_factory=list)
    _tasks: list[Any] = field(default_factory=list)
    _observers: list[Any] = field(default_factory=list)
    _builtin: dict[str, str] = field(default_factory=dict)
    _classes: dict[str, type[TokenReducer]] = field(default_factory=dict)
    _owners: dict[str, Plugin] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The names of all usable methods: the built-ins in the registry's order, then the others."""
        return list(dict.fromkeys([*self._builtin, *self._classes]))

    def method(self, name: str) -> type[TokenReducer]:
        """Return a method's class. Raises UserError for an unknown one, and with the reason for one that failed."""
        if name in self._classes:
            return self._classes[name]
        if name in self._builtin:
            self._load_builtin(name)
            if name in self._classes:
                return self._classes[name]
        if name in self.failures:
            raise UserError(f"Method '{name}' could not be loaded: {self.failures[name]} Run 'tokenzoo plugins'.")
        raise self._unknown(name)

    def info(self, name: str) -> Plugin:
        """Return which plugin a method comes from."""
        if name not in self._owners:
            raise self._unknown(name)
        return self._owners[name]

    def families(self) -> list[Any]:
        """The model families that plugins add."""
        return list(self._families)

    def tasks(self) -> list[Any]:
        """The evaluation tasks that plugins add."""
        return list(self._tasks)

    def observers(self) -> list[Any]:
        """The plugins that implement run-time hooks themselves: they watch every run."""
        return list(self._observers)

    def build(self, specification: str) -> Pipeline:
        """Return the pipeline for `name`, `name:param=value,...`, `name@preset`, `a+b`.

        Values are YAML (`0.5`, `[8,16,24]`, `keep`); parameters after a preset override its own.
        """
        return Pipeline(tuple(self._build(part) for part in parse(specification)))

    def _build(self, part: MethodSpecification) -> TokenReducer:
        reducer_class = self.method(part.name)
        parameters: dict[str, Any] = {}
        if part.preset:
            parameters.update(self.registry.preset(part.name, part.preset).parameters)
        parameters.update(part.parameters)
        check_names(reducer_class, parameters)
        return reducer_class(**parameters)

    def _unknown(self, name: str) -> UserError:
        broken = [plugin for plugin in self.failures if plugin not in self.names()]
        command = "tokenzoo plugins" if broken else "tokenzoo list"
        error = unknown("method", name, self.names(), command)
        if not broken:
            return error
        return UserError(f"{str(error).rsplit(' Run ', 1)[0]} Not loaded: {', '.join(broken)}. Run '{command}'.")

    def _load_builtin(self, name: str) -> None:
        module = self._builtin[name]
        try:
            with kept_from_ending():
                found = importlib.import_module(module)
            classes = {cls.name: cls for cls in reducers_in(found)}
            if name not in classes:
                raise PluginError(f"{module} defines no TokenReducer named '{name}'.")
            check_class(classes[name])
            self._classes[name] = classes[name]
        except Exception as error:
            del self._builtin[name], self._owners[name]
            self._fail(name, reason(error))

    def _fail(self, name: str, why: str) -> None:
        self.failures[name] = why
        warnings.warn(f"tokenzoo plugin '{name}' is not used: {why}", PluginWarning, stacklevel=2)


_configured: tuple[Path, ...] = ()
_cache: dict[Any, Zoo] = {}


def configure(plugin_files: Iterable[str | Path] = (), registry_files: Iterable[str | Path] = ()) -> None:
    """Set what `load_zoo()` without arguments loads in this process: the command line's --plugin and --registry."""
    global _configured
    _configured = tuple(map(Path, plugin_files))
    registry.configure(registry_files)


def configured() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The plugin and registry files set last, for handing on to a child process."""
    return _configured, registry.configured()


def load_zoo(plugin_files: Sequence[str | Path] | None = None, registry_files: Sequence[str | Path] | None = None) -> Zoo:
    """Return everything that is installed plus these files; the same object for the same files."""
    files = _configured if plugin_files is None else tuple(map(Path, plugin_files))
    registries = registry.configured() if registry_files is None else tuple(map(Path, registry_files))
    key = (files, registries, os.environ.get(ALLOWLIST), os.environ.get("TOKENZOO_REGISTRY"))
    if key not in _cache:
        _cache[key] = _load(files, registries)
    return _cache[key]


def _load(files: tuple[Path, ...], registries: tuple[Path, ...]) -> Zoo:
    from tokenzoo import __version__

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RegistrationHooks)
    manager.add_hookspecs(RunHooks)
    zoo = Zoo(load_registry(registries), manager)
    for name, entry in zoo.registry.methods.items():
        if entry.module:
            zoo._builtin[name] = entry.module
            ours = zoo.registry.origins["methods", name].startswith(f"{registry.builtin_path()}:")
            built_in = Plugin(name, "built-in", entry.module, PROJECT, __version__)
            zoo._owners[name] = built_in if ours else Plugin(name, "registry", entry.module)
    for point, plugin in _entry_points(zoo):
        _add(zoo, plugin, point.load)
    for file in files:
        plugin = Plugin(file.stem, "file", str(file))
        _add(zoo, plugin, partial(import_file, file))
    return zoo


def _entry_points(zoo: Zoo) -> list[tuple[Any, Plugin]]:
    allowed = os.environ.get(ALLOWLIST)
    if allowed == "":
        return []
    from importlib.metadata import entry_points

    wanted = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found, seen = [], set()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        distribution = point.dist.name if point.dist else ""
        key = (point.name, point.value, distribution)
        if key in seen:
            continue
        seen.add(key)
        if wanted is None or point.name in wanted or distribution in wanted:
            version = point.dist.version if point.dist else ""
            found.append((point, Plugin(point.name, "distribution", point.value, distribution, version)))
    missing = (wanted or set()) - {p.name for _, p in found} - {p.distribution for _, p in found} - {""}
    for name in sorted(missing):
        zoo._fail(name, f"{ALLOWLIST} names it, but no installed distribution has an entry point of that name.")
    return found


def _add(zoo: Zoo, plugin: Plugin, load: Callable[[], Any]) -> None:
    """Load one plugin; where anything is wrong with it, leave no trace of it and remember why."""
    loaded = None
    additions = Additions()
    try:
        with kept_from_ending():
            loaded = load()
            additions = additions_of(loaded, plugin.name, plugin.origin, zoo.manager)
        for cls in additions.classes:
            check_version(getattr(cls, "requires_tokenzoo", ""))
            check_class(cls)
        _check_names(zoo, plugin, [cls.name for cls in additions.classes])
        zoo.registry.add(additions.fragment, plugin.origin)
    except Exception as error:
        if zoo.manager.is_registered(loaded):
            zoo.manager.unregister(loaded)
        why = reason(error)
        zoo._fail(plugin.name, why)
        for cls in additions.classes:
            name = getattr(cls, "name", "")
            if name and name not in zoo._owners:
                zoo.failures.setdefault(name, f"its plugin '{plugin.name}' failed: {why}")
        return
    zoo.plugins.append(plugin)
    for cls in additions.classes:
        zoo._classes[cls.name] = cls
        zoo._owners[cls.name] = plugin
        zoo.failures.pop(cls.name, None)
    zoo._families.extend(additions.families)
    zoo._tasks.extend(additions.tasks)
    zoo._observers.extend(additions.observers)


def _check_names(zoo: Zoo, plugin: Plugin, names: list[str]) -> None:
    """Names are free; a file given by hand may stand for the installed distribution it is the source of."""
    for name in names:
        owner = zoo._owners.get(name)
        if owner and (owner.kind, plugin.kind) != ("distribution", "file"):
            raise PluginError(f"the method name '{name}' is taken by {owner.origin} ({owner.kind}). Choose another.")
        if names.count(name) > 1:
            raise PluginError(f"it defines the method '{name}' twice.")
