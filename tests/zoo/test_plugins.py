"""Finding plugins, isolating the broken ones, and building pipelines from specifications."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tokenzoo
from tokenzoo.errors import UserError
from tokenzoo.zoo import plugins
from tokenzoo.zoo.plugins import PluginWarning, load_zoo
from tokenzoo.zoo.specification import parse, split_methods

BROKEN = Path(__file__).parents[1] / "broken_plugins"
UNLOADABLE = {
    "bad_signature": "defines reduce(self, tokens, attention), expected reduce(self, tokens)",
    "cannot_import": "No module named 'a_package_that_nobody_has' (cannot_import.py, line 3)",
    "misspelt_hook": "Did you mean 'score'?",
    "misspelt_registration": "'tokenzoo_method' is no hook. Did you mean 'tokenzoo_methods'?",
    "other_version": "needs tokenzoo >=99",
    "taken_name": "the method name 'aim' is taken by tokenzoo",
}
METHOD = """
from dataclasses import dataclass
from tokenzoo import TokenReducer
@dataclass
class Mine(TokenReducer):
    name = "mine"
    share: float = 0.5
    def left(self, views, source, architecture):
        return sum(views)
"""


def zoo_of(tmp_path: Path, text: str) -> plugins.Zoo:
    path = tmp_path / "my_plugin.py"
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return plugins._load((path,), ())


def test_built_ins_are_listed_without_being_imported() -> None:
    zoo = plugins._load((), ())
    assert {"none", "random", "uniform", "pool", "aim", "fastv", "pdrop", "vtw", "prumerge"} <= set(zoo.names())
    assert not zoo._classes
    assert zoo.method("aim").name == "aim"
    assert zoo.info("aim").distribution == "tokenzoo"
    assert zoo.failures == {}


def test_a_file_adds_a_method(tmp_path: Path) -> None:
    zoo = zoo_of(tmp_path, METHOD)
    assert str(zoo.build("mine:share=0.25")) == "mine:share=0.25"
    assert zoo.info("mine").kind == "file"


def test_hooks_add_methods_families_tasks_and_a_registry(tmp_path: Path) -> None:
    hooks = """
from tokenzoo import hookimpl
@hookimpl
def tokenzoo_methods(): return [Mine]
@hookimpl
def tokenzoo_families(): return ["a family"]
@hookimpl
def tokenzoo_tasks(): return ["a task"]
@hookimpl
def tokenzoo_registry(): return {"hardware": {"my-gpu": {"peak": 1}}}
"""
    zoo = zoo_of(tmp_path, METHOD + hooks)
    assert zoo.method("mine").name == "mine"
    assert zoo.families()[-1] == "a family"
    assert zoo.tasks() == ["a task"]
    assert zoo.registry.hardware["my-gpu"] == {"peak": 1}


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("def tokenzoo_methods(): return [Mine]", "lacks the @tokenzoo.hookimpl decorator"),
        ("import tokenzoo\n@tokenzoo.hookimpl\ndef tokenzoo_methods(): return Mine", "must return a list"),
        ("import tokenzoo\n@tokenzoo.hookimpl\ndef tokenzoo_methods(x): return []", "Argument(s) {'x'}"),
        ("import tokenzoo\n@tokenzoo.hookimpl\ndef tokenzoo_methods(): return [3]", "no subclass"),
        ("import tokenzoo\n@tokenzoo.hookimpl\ndef tokenzoo_registry(): return {'x': 1}", "tokenzoo_registry: x"),
        ("requires_tokenzoo = 'new'", "no version specifier"),
        ("Mine.requires_tokenzoo = '<0.0.1'", "needs tokenzoo <0.0.1"),
        ("raise SystemError('oh')", "SystemError: oh (my_plugin.py, line"),
        ("def f(:", "SyntaxError: "),
        ("Mine.name = 'Not Good'", "lower-case"),
        ("class Other(Mine): pass", "twice"),
        ("del Mine", "it adds nothing"),
    ],
)
def test_a_failing_plugin_is_rolled_back_with_its_reason(tmp_path: Path, addition: str, words: str) -> None:
    zoo = zoo_of(tmp_path, METHOD + addition + "\n")
    assert words in zoo.failures["my_plugin"]
    assert "mine" not in zoo.names()
    assert zoo.plugins == []
    with pytest.raises(UserError, match="my_plugin"):
        zoo.method("mine" if "mine" in zoo.failures else "my_plugin")
    assert zoo.build("aim").name == "aim"


def test_broken_plugins_do_not_disturb_each_other_or_the_rest() -> None:
    files = tuple(sorted(BROKEN.glob("*.py")))
    with pytest.warns(PluginWarning) as caught:
        zoo = plugins._load(files, ())
    for name, words in UNLOADABLE.items():
        assert words in zoo.failures[name]
        with pytest.raises(UserError, match="could not be loaded"):
            zoo.method(name)
    assert len(caught) == len(UNLOADABLE)
    assert {file.stem for file in files} - set(UNLOADABLE) <= set(zoo.names())
    assert zoo.info("aim").kind == "built-in"
    for name in ("aim", "fastv", "duplicates"):
        assert zoo.build(name).name == name


def entry_point(name: str, load: Any, distribution: str = "dist") -> Any:
    return SimpleNamespace(name=name, value=f"{name}_module", load=load, dist=SimpleNamespace(name=distribution, version="1.2"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenzoo import TokenReducer

    good = type("Good", (TokenReducer,), {"name": "good", "__module__": "m"})

    def bad() -> Any:
        raise ImportError("no such thing")

    points = [entry_point("good", lambda: good), entry_point("bad", bad, "other-dist")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)


def loaded() -> plugins.Zoo:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return plugins._load((), ())


def test_entry_points_load_one_by_one(installed: None) -> None:
    zoo = loaded()
    assert zoo.info("good").origin == "dist 1.2"
    assert zoo.failures == {"bad": "ImportError: no such thing (test_plugins.py, line " + zoo.failures["bad"].split("line ")[1]}


@pytest.mark.parametrize(("allowed", "names"), [("", []), ("good", ["good"]), ("dist", ["good"]), ("good, nobody", ["good"])])
def test_the_allowlist(installed: None, monkeypatch: pytest.MonkeyPatch, allowed: str, names: list[str]) -> None:
    monkeypatch.setenv("TOKENZOO_LOAD_PLUGINS", allowed)
    zoo = loaded()
    assert [plugin.name for plugin in zoo.plugins] == names
    assert ("nobody" in zoo.failures) == ("nobody" in allowed)


def test_a_plugin_that_watches_is_called_in_every_run(tmp_path: Path) -> None:
    from tokenzoo.testing import tiny_inputs, tiny_model

    path = tmp_path / "watcher.py"
    path.write_text(
        "import tokenzoo\nseen = []\n"
        "@tokenzoo.hookimpl\ndef tokenzoo_after_layer(layer):\n    seen.append((layer.index, len(layer.visual)))\n"
    )
    zoo = plugins._load((path,), ())
    assert zoo.failures == {} and len(zoo.observers()) == 1
    plugins.configure([path])
    try:
        model = tiny_model("llava", layers=4)
        with tokenzoo.apply(model, "fastv:K=2"):
            model(**tiny_inputs(model, "single"))
        assert load_zoo().observers()[0].seen == [(1, 18)]
    finally:
        plugins.configure()


def test_the_zoo_is_cached_by_its_files(tmp_path: Path) -> None:
    assert load_zoo((), ()) is load_zoo([], [])


def test_configured_files_are_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    plugins.configure([path])
    try:
        assert "mine" in load_zoo().names()
    finally:
        plugins.configure()
    assert "mine" not in load_zoo().names()


def test_specifications() -> None:
    (fastv, vtw) = parse("fastv:K=3,R=0.75 + vtw")
    assert (fastv.name, fastv.parameters, vtw.name) == ("fastv", {"K": 3, "R": 0.75}, "vtw")
    (pdrop,) = parse("pdrop@official:layer_list=[8,16],ratios=[0.5,0.25],position=keep")
    assert (pdrop.preset, pdrop.parameters["layer_list"], pdrop.parameters["position"]) == ("official", [8, 16], "keep")
    (one,) = parse("aim:temperature=1.0e+2")
    assert one.parameters == {"temperature": 100.0}


def test_splitting_a_list_of_methods() -> None:
    assert split_methods("aim,fastv:K=3,R=0.5,a+b,p:l=[1,2],q=2") == ["aim", "fastv:K=3,R=0.5", "a+b", "p:l=[1,2],q=2"]
    with pytest.raises(UserError, match="empty method"):
        split_methods("aim,,fastv")


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("fastvv", "Unknown method 'fastvv'. Did you mean 'fastv'? Run 'tokenzoo list'."),
        ("fastv:k=3", "Unknown parameter of 'fastv' 'k'. Did you mean 'K'? Run 'tokenzoo show fastv'."),
        ("fastv:K=0", "greater than or equal to 1"),
        ("fastv:K", "is no param=value"),
        ("fastv:K=1,K=2", "stands twice"),
        ("fastv:K=[1", "cannot be read"),
        ("fastv@nope", "preset of 'fastv'"),
        ("", "is no method specification"),
        ("a b", "is no method specification"),
    ],
)
def test_wrong_specifications_say_what_to_write(specification: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_zoo((), ()).build(specification)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
