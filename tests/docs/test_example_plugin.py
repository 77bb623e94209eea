"""Distributions by third parties, installed with pip: the example of the documentation, and what `new` writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example-plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of its own that sees what this one has (tokenzoo, torch, setuptools, pip)."""
    path = tmp_path_factory.mktemp("environment")
    venv.create(path, with_pip=False)
    python = path / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sorted(seen))
    Path(site.strip(), "parent.pth").write_text(lines)
    return python


def run(python: Path, *arguments: str, cwd: Path | None = None, code: int = 0) -> str:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([python, *arguments], cwd=cwd, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def install(python: Path, source: Path) -> None:
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", str(source))


@pytest.fixture(scope="module")
def example(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "example-plugin"
    shutil.copytree(EXAMPLE, source)
    install(environment, source)
    return environment


def test_the_example_is_listed_and_shown(example: Path, tmp_path: Path) -> None:
    listed = json.loads(run(example, "-m", "tokenzoo", "list", "--format", "json", cwd=tmp_path))
    assert {"maxmin": "tokenzoo-maxmin 1.0.0"}.items() <= {row["name"]: row["from"] for row in listed}.items()
    shown = run(example, "-m", "tokenzoo", "show", "maxmin", cwd=tmp_path)
    assert "2503.02175" in shown and "tokens-192" in shown
    assert "tokenzoo-maxmin 1.0.0" in run(example, "-m", "tokenzoo", "plugins", cwd=tmp_path)


def test_the_example_passes_check(example: Path, tmp_path: Path) -> None:
    wanted = ["--family", "llava", "--family", "llava-onevision", "--family", "qwen2.5-vl", "--backend", "sdpa"]
    assert "Every guarantee holds." in run(example, "-m", "tokenzoo", "check", "maxmin", *wanted, cwd=tmp_path)


def test_the_example_stands_in_a_comparison_with_aim(example: Path, tmp_path: Path) -> None:
    options = ["--methods", "aim,maxmin", "--model", "embedded:llava", "--limit", "4", "--no-timing"]
    options += ["--store", str(tmp_path / "store.sqlite"), "--format", "json"]
    table = json.loads(run(example, "-m", "tokenzoo", "compare", *options, cwd=tmp_path))
    text = json.dumps(table)
    for name in ("aim", "maxmin", "none", "random"):
        assert f'"{name}"' in text


def test_the_example_passes_its_own_tests(example: Path) -> None:
    wanted = "greedy or equal_tokens or (llava-left-sdpa and not next)"
    run(example, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, cwd=EXAMPLE)


def test_the_allowlist_leaves_it_out(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENZOO_LOAD_PLUGINS", "")
    assert "maxmin" not in run(example, "-m", "tokenzoo", "list", cwd=tmp_path)


def test_what_new_writes_installs_and_passes_its_own_test(environment: Path, tmp_path: Path) -> None:
    run(environment, "-m", "tokenzoo", "new", "my-method", cwd=tmp_path)
    install(environment, tmp_path / "my-method")
    assert "my-method" in run(environment, "-m", "tokenzoo", "list", cwd=tmp_path)
    wanted = "stands_out or (llava-left-sdpa and not next) or qwen2-vl-repeated-sdpa"
    run(environment, "-m", "pytest", "-q", "-k", wanted, cwd=tmp_path / "my-method")
    check = ["check", "my_method.py", "--family", "llava", "--backend", "sdpa"]
    checked = run(environment, "-m", "tokenzoo", *check, cwd=tmp_path / "my-method")
    assert "Every guarantee holds." in checked
