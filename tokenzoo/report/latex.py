"""The comparison as LaTeX tables (booktabs): grouped header, baseline first, best bold, second in italics.

The first table of a section is what a paper prints; the second holds every other column. What is said of single rows, refusals
among it, stands below the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from tokenzoo.comparison.rows import Comparison, Section
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import appendix_columns, benchmarks, paper_columns, quoted_cells
from tokenzoo.report.wording import DIFFERS, INTERVALS, RATIO, SPREAD, marks, remarks

#: Begins what is made smaller where it is wider than the page, and never larger.
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
#: A caption above a table stands off its rule; article's own skip is for captions below.
ABOVE = r"\setlength{\belowcaptionskip}{6pt}"
ORIGINS = {"measured": "Measured", "computed": "Computed"}
#: Italics and not an underline, which reads as the overline of the next row.
MARKED = {"best": r"\textbf{%s}", "second": r"\textit{%s}"}
#: Characters outside ASCII that our tables use, as LaTeX.
SYMBOLS = str.maketrans({
    "×": r"$\times$", "±": r"$\pm$", "Δ": r"$\Delta$", "–": r"\textendash{}", "²": r"$^2$", "…": r"\dots{}", "−": "$-$",
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
        notes = [*remarks(section), *comparison.notes]
        tables.append(_table(section, paper_columns(section), _caption(section, comparison), label(section.title), notes))
        if rest := appendix_columns(section):
            caption = f"{_subject(section)}: the other columns of Table~\\ref{{{label(section.title)}}}."
            tables.append(_table(section, rest, caption, label(f"{section.title} more")))
        if section.published:
            tables.append(_quoted(section))
    return head + "\n".join(tables)


def label(title: str) -> str:
    """`tab:embedded-llava-images`: what a paper refers to a table by."""
    return f"tab:{'-'.join(re.findall(r'[a-z0-9.]+', title.lower()))}"


def _table(section: Section, columns: Sequence[Column], caption: str, name: str, notes: Sequence[str] = ()) -> str:
    rows = sorted(section.rows, key=lambda row: not row.is_baseline)
    ranks = [ranking(column, rows, section.equal_cost) for column in columns]
    lines = [
        *_head(caption, name),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        *_header(columns),
        r"\midrule",
    ]
    for index, row in enumerate(rows):
        if row.status != "ok":
            cells = [rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{row.status}, see below}}}}"]
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
        *_head(f"{_subject(section)}: what papers printed, quoted from {escape(sources)}.", label(f"{section.title} quoted")),
        rf"\begin{{tabular}}{{ll{'r' * len(names)}}}",
        r"\toprule",
        rf"& & \multicolumn{{{len(names)}}}{{c}}{{Quoted}} \\",
        rf"\cmidrule(lr){{3-{len(names) + 2}}}",
        " & ".join(["Method", "Printed row", *map(escape, names)]) + r" \\",
        r"\midrule",
    ]
    for row in section.published:
        cells = [escape(row.method), escape(f"{row.row} ({row.architecture})"), *map(number, quoted_cells(row, names))]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def _head(caption: str, name: str) -> list[str]:
    return [r"\begin{table*}[t]", r"\centering", ABOVE, rf"\caption{{{caption}}}", rf"\label{{{name}}}", FIT]


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


def _subject(section: Section) -> str:
    """The model and the kind of input, as a caption begins."""
    return rf"\texttt{{{escape(section.model)}}} on {section.kind}s"


def _caption(section: Section, comparison: Comparison) -> str:
    machine = escape(str(comparison.environment.get("machine", "?")))
    read = f"{marks(comparison, 'Bold', 'italics')} {INTERVALS}; {DIFFERS}. {SPREAD}; {RATIO}; ! slower than none."
    said = f"{section.questions} questions a method. {section.terms}"
    return f"{_subject(section)}: {escape(said.strip())} Measured on {machine}. {escape(read)}"


def _marked(text: str, rank: str | None) -> str:
    return MARKED[rank] % number(text) if rank else number(text)


def number(text: str) -> str:
    """A cell of numbers as LaTeX: a hyphen before a digit is a minus sign."""
    return escape(re.sub(r"(?<![\w.])-(?=\d)", "−", text))


def escape(text: str) -> str:
    """Plain text as LaTeX; other characters outside ASCII become '?', and two hyphens stay two."""
    plain = "".join(SPECIAL.get(character, character if character.isascii() else "?") for character in text)
    return re.sub(r"-(?=-)", "-{}", plain)
