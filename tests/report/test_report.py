"""Every rendering of one fixed comparison: what it must say, and that it opens where it is meant to open."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from tokenzoo.comparison.rows import Comparison, Price, Quoted, Row, Section, TaskScore, Timing
from tokenzoo.comparison.statistics import Spread, paired_difference, wilson
from tokenzoo.numbers import binary_bytes, percent, si
from tokenzoo.report import plots
from tokenzoo.report.column import ranking
from tokenzoo.report.columns import accuracy_column, all_columns, appendix_columns, paper_columns, prefill_column
from tokenzoo.report.data import comparison_csv, comparison_json
from tokenzoo.report.html import html
from tokenzoo.report.latex import escape, latex, number
from tokenzoo.report.markdown import markdown
from tokenzoo.report.table import print_comparison

PREAMBLE = r"\documentclass{article}\usepackage{booktabs}\usepackage[a4paper,landscape,margin=1cm]{geometry}\usepackage{graphicx}"
TASKS = ["attribute", "relation", "existence", "counting", "reading"]
TARGET = "llava-1.5-7b@a100"


def spread(value):
    return Spread(value, 0.97 * value, 1.05 * value, 5)


def score(task, right, questions, reference=None):
    difference = None
    if reference is not None:
        answers = [[index < count for index in range(questions)] for count in (right, reference)]
        difference = paired_difference(*answers)
    return TaskScore(task, right, questions, wilson(right, questions), difference, 0.8 if task == "existence" else None)


def row(label, right, share, ratio=None):
    reference = None if label == "none" else 188
    timing = Timing(
        spread(40 * share + 5), spread(50 * share + 5), spread(8.1), spread(0 if label == "none" else 2),
        spread(ratio or share + 0.1), spread(0.98), 3_000_000,
    )  # fmt: skip
    return Row(
        label.split(":")[0], label, visual_tokens=144 * share, visual_share=share,
        tokens_per_layer=[144.0] * 2 + [144 * share] * 10,
        scores={task: score(task, right // 5, 40, reference and 37) for task in TASKS},
        overall=score("all", right, 200, reference), flops=3.2e9 * (0.2 + 0.8 * share), llm_flops=2e9 * share,
        llm_share=share, kv_bytes=18432 * (20 + 144 * share), timing=timing,
        prices={TARGET: Price(TARGET, "llm-viewer", 8.18 * share, share, 29.3 * share, 300_000_000, 576 * share)},
        budget="" if label == "none" else "30%", at_budget=label not in ("none", "random"),
    )  # fmt: skip


@pytest.fixture
def comparison():
    rows = [
        row("none", 188, 1.0, 1.0), row("random", 120, 0.25), row("aim", 186, 0.25), row("fastv:K=3,R=0.75", 184, 0.27),
        row("slow_&_50%_{odd}", 150, 0.9, 1.3), 
        Row("broken", "broken", "failed", "ZeroDivisionError: no <token> & no $ (task a)"),
    ]  # fmt: skip
    quoted = [Quoted("aim", "AIM (high)", "aim-iccv2025, image_benchmarks", "vicuna-7b", {"GQA": 58.6, "MME": 1443.5})]
    section = Section("embedded:llava", "image", TASKS, rows, 200, {"attribute": 0.15}, "Timed.", quoted,
                      "Equal terms: every method set to at most 30% of the LLM FLOPs.", True, ["A warning."])  # fmt: skip
    machine = {"machine": "AMD EPYC", "threads": 2, "torch": "2.13", "transformers": "5.23", "dtype": "float32",
               "attention": "sdpa", "tokenzoo": "0.1.0"}  # fmt: skip
    return Comparison([section], {"methods": ["aim"]}, machine, 52.0, ["A note."], ["Try it --fresh."])


def test_best_and_second_leave_none_out(comparison):
    rows = comparison.sections[0].rows
    assert ranking(accuracy_column(), rows, True) == {2: "best", 3: "second"}


def test_what_costs_less_than_the_budget_is_not_the_fastest_for_it(comparison):
    rows = comparison.sections[0].rows
    assert ranking(prefill_column(), rows, True) == {2: "best", 3: "second"}
    rows[1].at_budget = True
    assert ranking(prefill_column(), rows, True) == {1: "best", 2: "best", 3: "second"}


def test_rows_of_two_budgets_are_ranked_apart(comparison):
    rows = comparison.sections[0].rows
    for one in rows[3:5]:
        one.budget = "90%"
    assert ranking(accuracy_column(), rows, True) == {2: "best", 1: "second", 3: "best", 4: "second"}


def test_rows_that_read_the_same_share_a_place(comparison):
    rows = comparison.sections[0].rows
    rows[2].timing, rows[3].timing = (dataclasses.replace(rows[2].timing, prefill_ms=spread(ms)) for ms in (15.01, 15.04))
    assert ranking(prefill_column(), rows, True) == {2: "best", 3: "best", 4: "second"}


@pytest.mark.parametrize("render", ["table", "markdown", "latex", "html"])
def test_no_row_is_the_best_where_costs_differ(comparison, render):
    """A method with 58 % of the tokens once stood in bold over one with 17 %, in a table that did not say so."""
    section = comparison.sections[0]
    section.equal_cost, section.terms = False, "Costs differ (each method at its own settings): from 25% (aim) to 90% (slow)."
    said = rendered(comparison, render)
    assert section.terms in " ".join(said.replace("\\", "").split()) and "No row is marked as the best" in said
    for mark in ("**", "<u>", r"\textbf", r"\textit{9", 'class="best"', 'class="second"'):
        assert mark not in said


@pytest.mark.parametrize("render", ["table", "markdown", "latex", "html"])
def test_computed_columns_are_the_budget_and_have_no_best(comparison, render):
    said = rendered(comparison, render).replace("\\", "")
    assert said.count("500M 25%") == 2
    for mark in ("**500M", "<u>500M", "textbf{500M", "textit{500M", '"best">500M', '"second">500M'):
        assert mark not in said


def rendered(comparison, form):
    if form != "table":
        return {"markdown": markdown, "latex": latex, "html": html}[form](comparison)
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=100))
    return out.getvalue()


def test_the_table_is_readable_at_100_columns(comparison):
    text = rendered(comparison, "table")
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text and "Try it --fresh." in text
    assert "measured" in text and "computed" in text and "quoted" in text
    assert re.search(r"none +144\.0 100% +94\.0 \[90 97\] +– +45\.0±1\.8 +1\.00", text)
    assert re.search(r"fastv:K=3,R=0\.75 +38\.9 27% +92\.0 \[87 95\] +-2\.0 \[-4 \+0\]", text)
    assert "1.30!" in text and "slow_&_50%_{odd} is slower than none (1.30 times its prefill)." in text
    assert "broken: failed: ZeroDivisionError" in text and "AIM (high)" in text and "A note." in text


def test_markdown(comparison):
    text = markdown(comparison)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:8]}
    assert len(widths) == 1
    assert "| `aim` | 36.0 25% | **93.0 [89 96]** |" in text and "<u>92.0 [87 95]</u>" in text
    assert "*measured*" in text and "*computed*" in text and "*quoted*" in text


def test_csv_has_a_line_per_row_with_plain_numbers(comparison):
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert [line["status"] for line in lines] == ["ok"] * 5 + ["failed", "quoted"]
    assert float(lines[2]["accuracy"]) == 0.93 and float(lines[2]["prefill_ms"]) == 15
    assert float(lines[2][f"{TARGET} tflops"]) == pytest.approx(2.045) and lines[5]["accuracy"] == ""
    assert float(lines[6]["published GQA"]) == 58.6


def test_json_has_everything_and_is_strict(comparison):
    comparison.sections[0].rows[0].flops = float("nan")
    data = json.loads(comparison_json(comparison), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    first = data["sections"][0]["rows"][0]
    assert first["flops"] is None and first["timing"]["prefill_ms"]["rounds"] == 5
    assert data["sections"][0]["rows"][2]["overall"]["difference"]["p_value"] <= 1


def test_latex_has_groups_baseline_first_best_and_second(comparison):
    comparison.sections[0].rows.reverse()
    text = latex(comparison)
    assert r"\multicolumn{9}{c}{Measured}" in text and r"\cmidrule(lr){2-10}" in text and r"{Computed}" in text
    body = text[text.index(r"\midrule") :]
    assert body.index("none") < body.index("broken")
    assert r"\textbf{93.0 [89 96]}" in text and r"\textit{92.0 [87 95]}" in text and r"\underline" not in text
    assert r"slow\_\&\_50\%\_\{odd\}" in text


def test_latex_compiles(comparison, tmp_path):
    engine = shutil.which("tectonic") or shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no TeX engine is installed (tectonic or pdflatex)")
    (tmp_path / "doc.tex").write_text(f"{PREAMBLE}\n\\begin{{document}}\n{latex(comparison)}\\end{{document}}\n")
    options = [] if engine.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([engine, *options, "doc.tex"], cwd=tmp_path, capture_output=True, text=True)
    if "not found" in done.stdout and ".sty" in done.stdout:
        pytest.skip("this TeX lacks booktabs, graphicx or geometry")
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "doc.pdf").stat().st_size > 10_000


def test_escape_leaves_no_character_that_latex_would_read():
    assert escape("50% of A_B & {x} ± 3×") == r"50\% of A\_B \& \{x\} $\pm$ 3$\times$"
    assert escape("日本") == "??"
    assert escape("--fresh") == "-{}-fresh", "two hyphens would be typeset as a dash"


def test_minus_signs_are_real():
    assert number("-26.0 [-33 +18]*") == "$-$26.0 [$-$33 +18]*"
    assert number("llava-1.5 e-05 1-2") == "llava-1.5 e-05 1-2"


def test_latex_tables_can_be_referred_to_and_say_budget_and_model(comparison):
    text = latex(comparison)
    captions = re.findall(r"\\caption\{(.*)\}\n\\label\{(tab:[a-z0-9-]+)\}", text)
    assert [name for _, name in captions] == [
        "tab:embedded-llava-images", "tab:embedded-llava-images-more", "tab:embedded-llava-images-quoted",
    ]  # fmt: skip
    assert all(r"\texttt{embedded:llava} on images" in caption for caption, _ in captions)
    assert r"at most 30\% of the LLM FLOPs" in captions[0][0] and "200 questions a method" in captions[0][0]
    assert r"\ref{tab:embedded-llava-images}" in captions[1][0]
    assert text.count(r"\belowcaptionskip") == 3, "a caption above a table stands off its rule"


def test_latex_has_refusals_as_notes_and_no_tool_talk(comparison):
    """A refusal's sentence in a cell once stretched the table, and hints on options stood in the paper."""
    text = latex(comparison)
    row = next(line for line in text.splitlines() if line.startswith(r"\texttt{broken}"))
    assert len(row) < 90 and "failed, see below" in row
    notes = re.findall(r"\\footnotesize (.*)\}", text)
    assert r"broken: failed: ZeroDivisionError: no \textless{}token\textgreater{} \& no \$ (task a)" in notes
    assert "A note." in notes and "A warning." in notes and "--" not in text and "fresh" not in text


def test_html_is_one_file_that_asks_the_network_for_nothing(comparison):
    text = html(comparison)
    assert text.startswith("<!DOCTYPE html>") and text.count("<svg") == 2
    assert "<script" not in text and "<link" not in text and "@import" not in text
    references = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', text)
    assert all(reference.startswith("#") for reference in references), references
    assert "no &lt;token&gt; &amp; no $" in text and 'class="quoted">quoted' in text


def test_html_keeps_what_is_compared_in_one_view(comparison):
    """Computed columns once stood off-screen at 1,200 pixels: a character of the table's font is 7 wide, its padding 20."""
    first = html(comparison).split("<table>")[1].split("</table>")[0]
    assert all(f"<th>{title}<br>" in first for title in ("Tokens", "Accuracy", "Δ none", "Prefill", "LLM FLOPs"))
    lines = [re.findall(r"<td[^>]*>(?:<code>)?([^<]*)", line) for line in first.split("<tr")[3:]]
    widest = [max(len(cell) for cell in column) for column in zip(*[line for line in lines if len(line) > 2], strict=True)]
    assert sum(7 * width + 20 for width in widest) < 1100


def test_plots_are_drawn_for_every_row(comparison, tmp_path):
    section = comparison.sections[0]
    for name, plot in (("pareto", plots.pareto), ("tokens", plots.tokens_per_layer)):
        drawn = plot(section)
        labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
        assert labels == ["none", "random", "aim", "fastv:K=3,R=0.75", "slow_&_50%_{odd}"]
        for ending in ("png", "pdf"):
            plots.save(drawn, tmp_path / f"{name}.{ending}")
            assert (tmp_path / f"{name}.{ending}").stat().st_size > 5000


@pytest.mark.parametrize("plot", [plots.pareto, plots.tokens_per_layer])
def test_a_setting_as_long_as_a_table_leaves_the_plot_its_room(comparison, plot):
    section = comparison.sections[0]
    rows = [dataclasses.replace(row, label=f"fitprune:delete={[number] * 32}") for number, row in enumerate(section.rows)]
    drawn = plot(dataclasses.replace(section, rows=rows))
    drawn.draw_without_rendering()
    assert drawn.axes[0].get_position().width > 0.5


def test_the_pareto_front_is_what_nothing_beats(comparison):
    points = plots.points_of(comparison.sections[0])
    assert [point.label for point in plots.pareto_front(points)] == ["aim", "none"]


def test_a_method_at_several_budgets_has_one_entry_in_the_legend(comparison):
    section = comparison.sections[0]
    fastv = next(row for row in section.rows if row.label.startswith("fastv"))
    budgets = [dataclasses.replace(fastv, label=f"fastv:R={share}", budget=f"{share:.0%}") for share in (0.5, 0.25)]
    for rows, names in (
        (budgets, ["fastv"]),
        ([*budgets, dataclasses.replace(fastv, budget="25%")], [row.label for row in [*budgets, fastv]]),
    ):
        drawn = plots.pareto(dataclasses.replace(section, rows=rows))
        assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == names


def test_every_column_is_in_one_of_the_two_latex_tables(comparison):
    section = comparison.sections[0]
    split = [(column.title, column.unit) for column in [*paper_columns(section), *appendix_columns(section)]]
    assert sorted(split) == sorted((column.title, column.unit) for column in all_columns(section))


def test_only_measured_and_computed_columns_stand_beside_our_rows(comparison):
    assert {column.origin for column in all_columns(comparison.sections[0])} == {"measured", "computed"}


def test_numbers_as_text():
    assert [percent(share) for share in (1.0, 0.25, 0.063, 0.0996)] == ["100%", "25%", "6.3%", "10%"]
    assert [si(amount) for amount in (12, 3.2e9, 8.18e12)] == ["12", "3.2G", "8.18T"]
    assert [binary_bytes(amount) for amount in (12, 2048, 3 * 2**20)] == ["12 B", "2.0 KiB", "3.0 MiB"]
