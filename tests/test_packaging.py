"""Wheel and source distribution hold all that tokenzoo reads at run time; an editable installation finds it too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Files that are read at run time; checkpoints and templates are found by their folders.
NEEDED = ["tokenzoo/registry.yaml", "tokenzoo/py.typed", "tokenzoo_plugins/aim.py", "tokenzoo/cost/tables/aim_iccv2025.yaml"]
NEEDED += ["tokenzoo/lmms/known.yaml"]
FOLDERS = ["bench/checkpoints", "comparison/configs", "templates"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel built from it."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".venv", "site")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


def test_the_wheel_holds_everything(built: Path) -> None:
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    assert set(NEEDED) <= names
    for folder in FOLDERS:
        for file in (ROOT / "tokenzoo" / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"tokenzoo/{file.relative_to(ROOT / 'tokenzoo').as_posix()}" in names
    for file in [*(ROOT / "tokenzoo").rglob("*.py"), *(ROOT / "plugins").glob("*.py")]:
        relative = file.relative_to(ROOT).as_posix().replace("plugins/", "tokenzoo_plugins/", 1)
        assert (relative if relative.startswith("tokenzoo_plugins") else file.relative_to(ROOT).as_posix()) in names


def test_the_source_distribution_holds_registry_tests_and_documentation(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    inside = {name.split("/", 1)[-1] for name in names}
    assert {"registry.yaml", "setup.py", "constraints.txt", "tests/test_packaging.py", "docs/guide.md"} <= inside


def test_tokenzoo_runs_from_the_wheel(built: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(tmp_path / "wheel")
    program = (
        "import tokenzoo, tokenzoo.zoo.registry as registry; from tokenzoo.cli import run; "
        "print(registry.builtin_path()); raise SystemExit(run(['show', 'aim']) or run(['new', 'my-method']))"
    )
    settings = {**os.environ, "PYTHONPATH": str(tmp_path / "wheel"), "TOKENZOO_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "wheel" / "tokenzoo" / "registry.yaml"))
    assert (tmp_path / "my-method" / "pyproject.toml").exists()
