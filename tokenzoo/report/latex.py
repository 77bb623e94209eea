"""The comparison as LaTeX tables (booktabs): grouped header, baseline first, best bold, second underlined.

The first table of a section is what a paper prints; the second holds every other column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import appendix_columns, benchmarks, paper_columns, quoted_cells

PREAMBLE = r"\documentclass{article}\usepackage{booktabs}\usepackage[a4paper,landscape,margin=1cm]{geometry}\usepackage{graphicx}"
#: Begins what is made smaller where it is wider than the page, and never larger.
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
ORIGINS = {"measured": "Measured", "computed": "Computed"}
#: Characters outside ASCII that our tables use, as LaTeX.
SYMBOLS = str.maketrans({
    "×": r"$\times$", "±": r"$\pm$", "Δ": r"$\Delta$", "–": "--", "²": r"$^2$", "…": r"\dots{}",
})  # fmt: skip
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", **{chr(code): text for code, text in SYMBOLS.items()},
}  # fmt: skip


def latex(comparison: Comparison) -> str:
    r"""Two `table*` for each section, to be \input into a paper that loads booktabs and graphicx."""
    head = "% Made by tokenzoo. Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
    tables = []
    for section in comparison.sections:
        settings = [f"{row.label}: {row.note}" for row in section.rows if row.status == "ok" and row.note]
        notes = [*settings, *comparison.notes]
        tables.append(_table(section, paper_columns(section), _caption(section, comparison), notes))
        if rest := appendix_columns(section):
            tables.append(_table(section, rest, f"{escape(section.title)}: time, memory and all FLOPs."))
        if section.published:
            tables.append(_quoted(section))
    return head + "\n".join(tables)


def document(comparison: Comparison) -> str:
    """The tables as a document that compiles by itself."""
    return f"{PREAMBLE}\n\\begin{{document}}\n{latex(comparison)}\\end{{document}}\n"


def _table(section: Section, columns: Sequence[Column], caption: str, notes: Sequence[str] = ()) -> str:
    rows = sorted(section.rows, key=lambda row: not row.is_baseline)
    ranks = [ranking(column, rows) for column in columns]
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        FIT,
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        *_header(columns),
        r"\midrule",
    ]
    for index, row in enumerate(rows):
        if row.status != "ok":
            cells = [rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{row.status}}}: {escape(row.note)}}}"]
        else:
            cells = [_marked(column.text(row), rank.get(index)) for column, rank in zip(columns, ranks, strict=True)]
        lines.append(" & ".join([rf"\texttt{{{escape(row.label)}}}", *cells]) + r" \\")
        if row.is_baseline:
            lines.append(r"\midrule")
    below = [rf"\par\smallskip\parbox{{\textwidth}}{{\footnotesize {escape(note)}}}" for note in notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", *below, r"\end{table*}", ""])


def _quoted(section: Section) -> str:
    names = benchmarks(section.published)
    sources = "; ".join(dict.fromkeys(row.source for row in section.published))
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(section.title)}: quoted from {escape(sources)}.}}",
        FIT,
        rf"\begin{{tabular}}{{ll{'r' * len(names)}}}",
        r"\toprule",
        rf"& & \multicolumn{{{len(names)}}}{{c}}{{Quoted}} \\",
        rf"\cmidrule(lr){{3-{len(names) + 2}}}",
        " & ".join(["Method", "Printed row", *map(escape, names)]) + r" \\",
        r"\midrule",
    ]
    for row in section.published:
        cells = [escape(row.method), escape(f"{row.row} ({row.architecture})"), *map(escape, quoted_cells(row, names))]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def _header(columns: Sequence[Column]) -> list[str]:
    groups, rules, start = [""], [], 2
    for origin, members in groupby(columns, key=lambda column: column.origin):
        width = len(list(members))
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{ORIGINS[origin]}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    titles = ["Method", *(escape(column.title) for column in columns)]
    units = ["", *(escape(column.unit) for column in columns)]
    return [" & ".join(line) + r" \\" + extra for line, extra in (
        (groups, "\n" + "".join(rules)), (titles, ""), (units, "")
    )]  # fmt: skip


def _caption(section: Section, comparison: Comparison) -> str:
    machine = escape(str(comparison.environment.get("machine", "?")))
    return (
        f"{escape(section.title)}: {section.questions} questions a method. Measured on {machine}; "
        r"brackets are 95\,\% intervals, * $p<0.05$ against none (McNemar); $\pm$ half the interquartile range. "
        r"Best in bold, second underlined, none left out; ! slower than none."
    )


def _marked(text: str, rank: str | None) -> str:
    text = escape(text)
    return rf"\textbf{{{text}}}" if rank == "best" else rf"\underline{{{text}}}" if rank == "second" else text


def escape(text: str) -> str:
    """Plain text as LaTeX; other characters outside ASCII become '?'."""
    return "".join(SPECIAL.get(character, character if character.isascii() else "?") for character in text)
