"""The documentation is whole: everything is described, links lead somewhere, snippets run, commands parse."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tokenzoo.cli import COMMANDS, cli
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import OVERRIDABLE
from tokenzoo.zoo.describe import describe
from tokenzoo.zoo.hookspecs import RegistrationHooks, RunHooks
from tokenzoo.zoo.plugins import load_zoo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + sorted(DOCS.glob("models/*.md")) + [ROOT / "README.md"]


def generator() -> Any:
    specification = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


GENERATED = {name: make() for name, make in generator().PAGES.items()}
METHODS = [name for name in load_zoo((), ()).names() if load_zoo((), ()).info(name).kind == "built-in"]


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_every_method_of_the_interface_is_documented(name: str) -> None:
    assert len(inspect.getdoc(getattr(TokenReducer, name)) or "") > 20, f"TokenReducer.{name} needs a docstring."
    assert f"### `{name}`" in GENERATED["hooks.md"]


@pytest.mark.parametrize(
    "name", [name for spec in (RunHooks, RegistrationHooks) for name in vars(spec) if not name.startswith("__")]
)
def test_every_plugin_hook_is_documented(name: str) -> None:
    function = getattr(RunHooks, name, None) or getattr(RegistrationHooks, name)
    assert len(inspect.getdoc(function) or "") > 20, f"hook {name} needs a docstring."
    assert f"`{name}`" in GENERATED["hooks.md"]


def test_every_override_of_a_family_is_documented() -> None:
    pytest.importorskip("torch")
    from tokenzoo.host.family import Family

    page = (DOCS / "model-families.md").read_text()
    overrides = [name for name, value in vars(Family).items() if callable(value) and not name.startswith("_")]
    assert len(overrides) > 20
    for name in [*overrides, "mrope", "per_layer_type"]:
        assert re.search(rf"`{name}\b", page), f"docs/model-families.md says nothing of Family.{name}."


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_parameter_is_documented(name: str) -> None:
    method = describe(load_zoo((), ()), name)
    assert method.documentation, f"{name} needs a docstring."
    assert method.summary and method.title and method.method.faithfulness
    if name not in ("none", "random", "uniform", "pool", "downsample"):
        assert method.method.paper and method.method.paper.arxiv and method.method.paper.code
    for parameter in method.parameters:
        assert parameter.description, f"{name}: parameter '{parameter.name}' is not explained in docstring or Field."
    for field in dataclasses.fields(load_zoo((), ()).method(name)):
        assert f"| `{field.name}` |" in GENERATED["methods.md"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"tokenzoo {name} {parameter.opts[0]} needs a help text."
            assert parameter.opts[0] in GENERATED["cli.md"]
    assert COMMANDS[name] in GENERATED["cli.md"]


def anchors(text: str) -> set[str]:
    explicit = set(re.findall(r"\{ #([\w-]+) \}", text))
    headings = re.findall(r"^#+ (.+?)(?: \{.*)?$", text, re.MULTILINE)
    return explicit | {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), f"{page.name}: {target}"
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if path.parent == DOCS and path.name in GENERATED:
            content = GENERATED[path.name]
        else:
            assert path.exists(), f"{page.name}: {target} is nowhere."
            content = path.read_text() if path.suffix == ".md" else ""
        assert not anchor or anchor in anchors(content), f"{page.name}: {target} has no such heading."


def test_the_navigation_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r": ([\w/.-]+\.md)$", text, re.MULTILINE))
    present = {str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)} | set(GENERATED)
    assert named == present


def snippets(language: str) -> list[Any]:
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippets_run(code: str, tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(code)
    module = type(sys)("snippet")
    sys.modules["snippet"] = module
    try:
        exec(compile(code, str(file), "exec"), module.__dict__)
    finally:
        del sys.modules["snippet"]


@pytest.mark.parametrize("code", snippets("bash"))
def test_commands_in_snippets_exist_with_their_options(code: str) -> None:
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "tokenzoo":
            continue
        arguments = words[1:]
        while arguments and arguments[0] in ("--plugin", "--registry"):
            arguments = arguments[2:]
        context = click.Context(cli, info_name="tokenzoo")
        command = cli.get_command(context, arguments[0])
        assert command is not None, line
        command.make_context(arguments[0], arguments[1:], parent=context)


@pytest.mark.parametrize("code", snippets("yaml"))
def test_registry_snippets_are_registries(code: str, tmp_path: Path) -> None:
    from tokenzoo.zoo.registry import load_registry

    path = tmp_path / "snippet.yaml"
    path.write_text(code)
    if isinstance(yaml.safe_load(code).get("methods"), dict):
        load_registry([path])


def test_the_documentation_builds(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (pip install tokenzoo[docs])")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "methods" / "index.html").exists()


def test_a_tree_without_git_has_what_a_release_needs() -> None:
    for name in ("LICENSE", "README.md", "CITATION.cff", "constraints.txt", "registry.yaml", "mkdocs.yml", ".ci/run"):
        assert (ROOT / name).stat().st_size > 0, name
    assert shutil.which("git") is None or "Apache License" in (ROOT / "LICENSE").read_text()
