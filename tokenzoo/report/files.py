"""Every form of a comparison by name, and all of them as files in a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenzoo.comparison.rows import Comparison
from tokenzoo.errors import FailedError

#: format -> file name in `--out DIR`
FILES = {
    "markdown": "comparison.md",
    "latex": "comparison.tex",
    "csv": "comparison.csv",
    "json": "comparison.json",
    "html": "report.html",
}
FORMATS = ("table", *FILES)


def rendered(comparison: Comparison, form: str) -> str:
    """The comparison as text in one of the formats of `FILES`."""
    return _renderer(form)(comparison)


def _renderer(form: str) -> Callable[[Comparison], str]:
    """Import what is needed for one format alone."""
    if form == "markdown":
        from tokenzoo.report.markdown import markdown as render
    elif form == "latex":
        from tokenzoo.report.latex import latex as render
    elif form == "csv":
        from tokenzoo.report.data import comparison_csv as render
    elif form == "json":
        from tokenzoo.report.data import comparison_json as render
    else:
        from tokenzoo.report.html import html as render
    return render


def prepare_directory(directory: Path) -> None:
    """Make the directory and see that files can be written there, before hours of work; raises FailedError."""
    probe = directory / ".tokenzoo-probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FailedError(f"Cannot write into '{directory}': {error.strerror}. Choose another --out.") from None


def write_all(comparison: Comparison, directory: Path) -> list[Path]:
    """Write every format and the plots (PNG and PDF); return the files."""
    from tokenzoo.report import plots

    prepare_directory(directory)
    written = []
    for form, name in FILES.items():
        path = directory / name
        write_text(path, rendered(comparison, form))
        written.append(path)
    for section in comparison.sections:
        stem = "".join(character if character.isalnum() else "-" for character in f"{section.model}-{section.kind}")
        for name, plot in (("pareto", plots.pareto), ("tokens", plots.tokens_per_layer)):
            drawn = plot(section)
            for ending in ("png", "pdf"):
                path = directory / f"{name}-{stem}.{ending}"
                plots.save(drawn, path)
                written.append(path)
    return written


def write_text(path: Path, text: str) -> None:
    """Write a text file; raises FailedError where that cannot be done."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FailedError(f"Cannot write '{path}': {error.strerror}.") from None
