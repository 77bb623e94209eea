"""Imports go down only: read from the source, so nothing is imported for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import tokenzoo

ROOT = Path(tokenzoo.__file__).parent
ORDER = [
    {"errors", "lazy", "numbers", "paths", "text", "yaml_file"},
    {"method"},
    {"zoo"},
    {"host", "cost", "models"},
    {"application"},
    {"counting", "bench"},
    {"lmms", "serving"},
    {"testing", "comparison", "training"},
    {"report"},
    {"studies"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py") if "templates" not in path.parts}


def statements(body: list[ast.stmt], inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run: those under TYPE_CHECKING are left out, those in functions only come with `inside`."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse, inside)
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody", "handlers"):
                for child in getattr(node, field, []):
                    yield from statements(child.body if isinstance(child, ast.ExceptHandler) else [child], inside)


def imported(module: str, inside: bool) -> set[str]:
    """The tokenzoo modules that a module imports."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")).body, inside):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert not node.level, f"{module} has a relative import"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            found.add(full if full in MODULES else str(node.module))
    return {name for name in found if name in MODULES} - {module}


def part(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in MODULES} - {""} == set(LEVEL)


def test_no_import_goes_upwards() -> None:
    # The package root only hands out names of the parts below the application; nothing below it may need it.
    assert {part(name) for name in imported("tokenzoo", True)} <= {
        "errors",
        "lazy",
        "numbers",
        "paths",
        "text",
        "yaml_file",
        "method",
        "zoo",
        "application",
    }
    upwards = [
        f"{module} imports {name}"
        for module in MODULES.keys() - {"tokenzoo"}
        for name in imported(module, True)
        if part(name) and LEVEL[part(name)] > LEVEL[part(module)]
    ]
    assert not upwards, sorted(upwards)


def test_nothing_at_run_time_needs_the_training() -> None:
    needing = [module for module in MODULES if part(module) != "training" and any(map(is_training, imported(module, True)))]
    assert not needing


def is_training(module: str) -> bool:
    return part(module) == "training"


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: imported(module, False) for module in MODULES}).prepare()
