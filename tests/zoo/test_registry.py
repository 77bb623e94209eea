"""registry.yaml and the files users add: read, checked, merged, with errors at file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenzoo.errors import UserError
from tokenzoo.zoo.registry import Contents, builtin_path, load_registry, read_registry

GOOD = """\
methods:
  mine:
    title: Mine
    presets:
      half: {parameters: {retention: 0.5}, description: half of the tokens}
hardware:
  my-gpu: {peak: 1}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "extra.yaml"
    path.write_text(text)
    return path


def test_the_built_in_registry_is_valid_and_read_as_such() -> None:
    contents, _ = read_registry(builtin_path())
    assert contents.methods == load_registry(()).methods
    assert contents.hardware == load_registry(()).hardware


def test_every_built_in_method_is_described() -> None:
    registry = load_registry(())
    for name, method in registry.methods.items():
        assert method.module, name
        assert method.title, name
        assert method.summary, name
        assert method.faithfulness, name
        for preset in method.presets.values():
            assert preset.description, name


def test_an_extra_file_adds_to_the_built_in_one(tmp_path: Path) -> None:
    registry = load_registry([write(tmp_path, GOOD)])
    assert registry.methods["mine"].presets["half"].parameters == {"retention": 0.5}
    assert registry.hardware["my-gpu"] == {"peak": 1}
    assert registry.origins["methods", "mine"].endswith("extra.yaml:2")
    assert "aim" in registry.methods


def test_the_environment_names_further_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENZOO_REGISTRY", str(write(tmp_path, GOOD)))
    assert "mine" in load_registry(()).methods


def test_a_method_without_module_adds_presets_to_one_that_exists(tmp_path: Path) -> None:
    path = write(tmp_path, "methods: {fastv: {presets: {mild: {parameters: {R: 0.1}, description: d}}}}")
    presets = load_registry([path]).methods["fastv"].presets
    assert presets["mild"].parameters == {"R": 0.1}
    assert len(presets) > 1


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("methods:\n  mine:\n    modul: x\n", 3, "there is no such key here"),
        ("methods:\n  mine: 3\n", 2, "methods.mine"),
        ("methods:\n  a: {title: x}\n  a: {title: y}\n", 3, "second time (first in line 2)"),
        ("hardware:\n  a100-40gb: {bandwidth: 1}\n", 2, "already defined at"),
        ("methods:\n  aim: {module: x}\n", 2, "a registry names no code"),
        ("\nmethods:\n  mine: {title: Mine, module: os}\n", 3, "a registry names no code"),
        ("methods:\n  aim:\n    presets:\n      official-video: {parameters: {}}\n", 2, "exists already"),
        ("methods: [\n", 2, "."),
        ("metods: {}\n", 1, "there is no such key here"),
    ],
)
def test_what_is_wrong_is_reported_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_registry([path])
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(UserError, match=r"Cannot read registry 'no\.yaml': No such file"):
        load_registry([Path("no.yaml")])


def test_an_empty_file_is_an_empty_registry(tmp_path: Path) -> None:
    assert read_registry(write(tmp_path, ""))[0] == Contents()


def test_a_file_cannot_have_code_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenzoo.zoo.plugins import load_zoo

    (tmp_path / "a_module_beside_it.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="--plugin FILE"):
        load_zoo((), [write(tmp_path, "methods: {mine: {module: a_module_beside_it}}")])


def test_the_built_in_registry_is_found() -> None:
    assert builtin_path().name == "registry.yaml"


def test_presets() -> None:
    registry = load_registry(())
    assert registry.preset("aim", "official-video").parameters["retention"] == 0.25
    with pytest.raises(UserError, match="Did you mean 'official-video'"):
        registry.preset("aim", "oficial-video")
    with pytest.raises(UserError, match="has no presets"):
        registry.preset("none", "x")


def test_every_preset_builds_its_method() -> None:
    from tokenzoo.zoo.plugins import load_zoo

    zoo = load_zoo((), ())
    for name, method in zoo.registry.methods.items():
        for preset in method.presets:
            assert zoo.build(f"{name}@{preset}").name == name
