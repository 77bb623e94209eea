"""`tokenzoo new`: a distribution with one worked method, its test and its README, ready to install."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import click

from tokenzoo.text import visible

#: Files are called so as well.
LONGEST = 64
TEMPLATES = Path(__file__).parent.parent / "templates" / "method"
#: Each file of the new distribution and the template it is made from.
FILES = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    ".gitignore": "gitignore.j2",
    "{module}.py": "module.py.j2",
    "tests/test_{module}.py": "tests/test_module.py.j2",
}


@click.command()
@click.argument("name")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where to put it; the default is a folder NAME here.")
def command(name: str, directory: Path | None) -> None:
    """Start a method of your own, called NAME: a distribution that installs and passes its test as it is."""
    written = write(name, directory or Path(name))
    module = module_name(name)
    click.echo(visible("\n".join(f"wrote {path}" for path in written)))
    click.echo(visible(f"\nNext:\n  cd {directory or name}\n  pip install -e '.[test]'\n  python -m pytest"))
    click.echo(f"  tokenzoo check {module}.py\n  tokenzoo compare --methods aim,{name}\nThe method is in {module}.py.")


def write(name: str, directory: Path) -> list[Path]:
    """Write the distribution; returns its files. Raises UserError for a bad name or a folder that is not empty."""
    from tokenzoo import __version__
    from tokenzoo.errors import FailedError, UserError
    from tokenzoo.zoo.plugins import load_zoo

    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or len(name) > LONGEST:
        rule = f"Use at most {LONGEST} lower-case letters, digits and single dashes: my-method."
        raise UserError(f"'{name}' is no method name. {rule}")
    if not _is_free(module_name(name)):
        raise UserError(f"Python has a module or keyword '{module_name(name)}' already. Choose another name.")
    if name in load_zoo().names():
        raise UserError(f"The name '{name}' is taken by {load_zoo().info(name).origin}. Choose another.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"'{directory}' exists and is not empty. Choose another with --dir.")
    import jinja2

    values = {
        "name": name,
        "module": module_name(name),
        "class_name": "".join(part.capitalize() for part in re.split("[-_]", name)),
        "title": re.sub("[-_]", " ", name).capitalize(),
        "version": ".".join(__version__.split(".")[:2]),
    }
    written = []
    for file, template in FILES.items():
        path = directory / file.format(module=values["module"])
        text = jinja2.Template((TEMPLATES / template).read_text(encoding="utf-8"), keep_trailing_newline=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.render(values), encoding="utf-8")
        except OSError as error:
            raise FailedError(f"Cannot write '{path}': {error.strerror}.") from None
        written.append(path)
    return written


def _is_free(module: str) -> bool:
    """Whether a module of this name would hide none that is installed; those in the current folder do not count."""
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()]
    taken = keyword.iskeyword(module) or module in sys.stdlib_module_names
    return not taken and PathFinder.find_spec(module, elsewhere) is None


def module_name(name: str) -> str:
    """The Python module of a method: dashes become underscores."""
    return name.replace("-", "_")
