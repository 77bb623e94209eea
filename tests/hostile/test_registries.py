"""Registries that are too big, too deep, recursive, or no registries at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "methods: " + "[" * 5000 + "]" * 5000
WRONG = {
    "laughs": LAUGHS,
    "laughs in their place": LAUGHS.replace("a: &a", "x: &a") + "methods: *i\n",
    "inside itself": "methods: &a {aim: *a}\n",
    "inside itself, a list": "methods: &a [*a]\n",
    "merged into itself": "methods: &a\n  <<: *a\n",
    "deep lists": DEEP,
    "deep mappings": "{a: " * 3000 + "1" + "}" * 3000,
    "deep blocks": "\n".join(" " * level + f"a{level}:" for level in range(200)),
    "large": "methods: {}\n" + "# filler\n" * 200_000,
    "many aliases": "a: &a 1\nmethods: [" + "*a, " * 210_000 + "]",
    "a list": "- aim\n",
    "a number": "5\n",
    "a text": "hello\n",
    "not YAML": "methods: {aim\n",
    "a tab": "methods:\n\taim: {}\n",
    "two documents": "methods: {}\n---\nmethods: {}\n",
    "unknown alias": "methods: *nobody\n",
    "equal keys": "methods: {}\nmethods: {}\n",
    "equal names": "methods:\n  a: {}\n  a: {}\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is a mapping": "? {a: b}\n: 1\n",
    "unknown section": "method: {}\n",
    "code by tag": "methods: !!python/object/apply:os.system ['true']\n",
    "unknown tag": "methods: !thing {}\n",
    "an own binary": "methods: !!binary '***'\n",
    "code by module": "methods: {mine: {module: os}}\n",
    "code by module over ours": "methods: {aim: {module: os}}\n",
    "a preset that exists": "methods: {aim: {presets: {video: {}}}}\n",
    "a method that is a list": "methods: {aim: [1]}\n",
    "presets that are a list": "methods: {aim: {presets: [1]}}\n",
    "a preset with other keys": "methods: {aim: {presets: {x: {parameter: 1}}}}\n",
    "a paper that is text": "methods: {mine: {paper: text}}\n",
    "published as text": "methods: {aim: {published: text}}\n",
    "methods that are null inside": "methods: {aim: }\n",
    "a bad date": "methods: {mine: {title: 2026-99-99}}\n",
    "5000 digits": f"hardware: {{big: {{bandwidth: {'9' * 5000}}}}}\n",
    "hardware that is taken": "hardware: {a100-40gb: {}}\n",
    "an architecture that is taken": "architectures: {vicuna-7b: {}}\n",
    "an architecture that is text": "architectures: {mine: text}\n",
    "a NUL": "methods:\0\n",
    "an escape": "methods: \x1b[31m\n",
    "an unclosed quote": "methods: 'aim\n",
    "a percent sign": "%YAML 9.9\n---\n",
    "an at sign": "methods: @aim\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_registry_that_is_none(refused, tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(text.encode())
    line = refused("--registry", str(path), "list")
    assert "hostile.yaml" in line


@pytest.mark.parametrize("command", [["list"], ["show", "aim"], ["cost"], ["plugins"], ["check", "aim"], ["new", "mine"],
                                     ["recommend", "--arch", "vicuna-7b", "--hardware", "a100", "--budget-ms", "10"]],
                         ids=lambda command: command[0])  # fmt: skip
def test_the_limits_hold_in_every_command(refused, tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    assert "aliases make more than" in refused("--registry", str(path), *command)


def test_bytes_that_are_no_text(refused, tmp_path: Path) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"methods: \xff\xfe\n")
    assert "not UTF-8" in refused("--registry", str(path), "list")


def test_a_folder(refused, tmp_path: Path) -> None:
    assert "Is a directory" in refused("--registry", str(tmp_path), "list")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(refused, tmp_path: Path) -> None:
    path = tmp_path / "locked.yaml"
    path.write_text("methods: {}")
    path.chmod(0)
    assert "Permission denied" in refused("--registry", str(path), "list")


def test_from_the_environment(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENZOO_REGISTRY", str(tmp_path / "nothing.yaml"))
    assert "No such file" in refused("list")
