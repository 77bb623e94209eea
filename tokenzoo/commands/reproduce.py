"""`tokenzoo reproduce`: a paper's efficiency tables, printed and recomputed, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenzoo.report.sheets import FORMATS, Sheet, show


@click.command("reproduce")
@click.argument("paper", required=False)
@click.option("--table", "tables", multiple=True, metavar="NAME", help="Only this table. May be given several times.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it.")
@click.option("--accuracy", is_flag=True, help="Accuracies that the store has beside the printed ones, instead of costs.")
@click.option("--store", "store_path", metavar="FILE", type=click.Path(path_type=Path), help="Where results are kept.")
@click.option("--released/--no-released", default=True, help="Also price AIM's rows as its released code prunes.")
def command(
    paper: str | None, tables: tuple[str, ...], form: str, accuracy: bool, store_path: Path | None, released: bool
) -> None:
    """Recompute the efficiency tables of PAPER from the methods' own schedules.

    Without PAPER: list the papers. FLOPs and prefill times are compared at the printed digits; a number that agrees
    only when it is first rounded to one more digit is marked "rounded twice". Nothing is measured and torch is not
    imported: these are closed forms under the convention the paper used.
    """
    from tokenzoo.cost import published

    if paper is None:
        click.echo("\n".join(published.papers()))
        return
    source = published.load_paper(paper)
    rows = published.select(source, tables)
    if accuracy:
        _accuracy(source, rows, store_path, form)
        return
    sheets, counts = _compared(source, rows)
    if released:
        sheets += _released(source, rows)
    if not tables:
        sheets += _overhead(source)
    from tokenzoo.report.terminal import print_line

    text = show(sheets, form)
    if text is not None:
        click.echo(text, nl=False)
    else:
        twice = f", {counts['rounded twice']} of them by rounding twice" if counts["rounded twice"] else ""
        agreeing = counts["agrees"] + counts["rounded twice"]
        total = sum(counts.values())
        print_line(
            f"{len(rows)} rows: {agreeing} of {total} cells agree at the printed digits{twice}; {counts['differs']} differ. "
            f"Convention {source.convention}, {source.hardware}, {source.dtype}."
        )


def _accuracy(source: Any, rows: list[Any], store_path: Path | None, form: str) -> None:
    """Measured beside printed, for the cells of lmms-eval's benchmarks that the store has."""
    from tokenzoo.comparison.reproduced import reproduced
    from tokenzoo.comparison.store import Store
    from tokenzoo.zoo.plugins import load_zoo

    columns = ["Row", "Method", "Benchmark", "printed", "measured", "±", "Δ", "Questions", "Model"]
    sheets: dict[str, Sheet] = {}
    with Store(store_path) as store:
        found = reproduced(rows, load_zoo(), store)
    for one in found:
        sheet = sheets.setdefault(one.table, Sheet(f"{source.name}: {one.table}", columns, left=frozenset({0, 1, 2, 8})))
        error = "" if one.error is None else f"{one.error:.1f}"
        numbers = [f"{one.printed:.1f}", f"{one.measured:.1f}", error, f"{one.measured - one.printed:+.1f}", str(one.questions)]
        sheet.add([one.row, one.method, one.benchmark, *numbers, one.model], **vars(one))
    text = show(list(sheets.values()), form)
    if text is not None:
        click.echo(text, nl=False)
    elif not found:
        click.echo(f"The store has no benchmark of these rows. Run 'tokenzoo compare --config {source.name}-image'.")


def _compared(source: Any, rows: list[Any]) -> tuple[list[Sheet], dict[str, int]]:
    from tokenzoo.cost.published import recompute, run_lengths
    from tokenzoo.zoo.plugins import load_zoo

    zoo = load_zoo()
    counts = {"agrees": 0, "rounded twice": 0, "differs": 0}
    columns = ["Row", "TFLOPs printed", "computed", "Δ", "ms printed", "computed", "Δ", "", "Method", "Visual tokens × layers"]
    sheets: dict[str, Sheet] = {}
    for row in rows:
        done = recompute(source, row, zoo.build(row.method))
        sheet = sheets.setdefault(row.table, Sheet(f"{source.name}: {row.table}", columns, left=frozenset({0, 7, 8, 9})))
        cells = []
        for cell in done.cells:
            counts[cell.verdict] += 1
            cells += [cell.printed, f"{cell.computed:.{cell.digits + 2}f}", f"{cell.difference:+.{cell.digits + 2}f}"]
        mark = _mark(done.cells)
        schedule = run_lengths(done.cost.visual_tokens)
        sheet.add(
            [row.name, *cells, mark, row.method, schedule],
            table=row.table,
            row=row.name,
            method=row.method,
            printed_tflops=float(row.tflops),
            computed_tflops=done.tflops.computed,
            tflops_verdict=done.tflops.verdict,
            printed_prefill_ms=float(row.prefill_ms),
            computed_prefill_ms=done.prefill_ms.computed,
            prefill_ms_verdict=done.prefill_ms.verdict,
            schedule=schedule,
            note=row.note,
        )
        if row.note:
            sheet.notes.append(f"{row.name}: {row.note}.")
    return list(sheets.values()), counts


def _mark(cells: Any) -> str:
    verdicts = [f"{cell.verdict} ({unit})" for cell, unit in zip(cells, ("TF", "ms"), strict=True) if cell.verdict != "agrees"]
    return "; ".join(verdicts) or "ok"


def _released(source: Any, rows: list[Any]) -> list[Sheet]:
    from tokenzoo.cost.published import as_released, recompute, run_lengths
    from tokenzoo.zoo.plugins import load_zoo

    sheet = Sheet(
        f"{source.name}: as released, pruning one layer later than the tables price",
        ["Table", "Row", "TFLOPs printed", "as released", "ms printed", "as released", "Visual tokens × layers"],
        left=frozenset({0, 1, 6}),
    )
    for row in rows:
        reducer = as_released(load_zoo().build(row.method))
        if reducer is None:
            continue
        done = recompute(source, row, reducer)
        schedule = run_lengths(done.cost.visual_tokens)
        numbers = [row.tflops, f"{done.tflops.computed:.2f}", row.prefill_ms, f"{done.prefill_ms.computed:.2f}"]
        sheet.add(
            [row.table, row.name, *numbers, schedule],
            table=row.table,
            row=row.name,
            method=str(reducer),
            printed_tflops=float(row.tflops),
            released_tflops=done.tflops.computed,
            printed_prefill_ms=float(row.prefill_ms),
            released_prefill_ms=done.prefill_ms.computed,
            schedule=schedule,
        )
    sheet.notes.append(
        "The tables price layer i on what is left after pruning at layer i; the released model prunes after layer i ran."
    )
    return [sheet] if sheet.rows else []


def _overhead(source: Any) -> list[Sheet]:
    from tokenzoo.cost.aim_overhead import recompute_overhead

    if "overhead_gflops" not in source.extras:
        return []
    sheet = Sheet(
        f"{source.name}: the method's own cost in GFLOPs (Qwen2-7B, 32 frames)",
        ["", "printed", "computed", "Δ", "", "merged frame by frame"],
        left=frozenset({0, 4}),
    )
    for name, cell, executed in recompute_overhead(source):
        agrees = [name, cell.printed, f"{cell.computed:.{cell.digits + 2}f}", f"{cell.difference:+.{cell.digits + 2}f}"]
        sheet.add(
            [*agrees, cell.verdict, f"{executed:.2f}" if executed is not None else "–"],
            overhead=name,
            printed_gflops=float(cell.printed),
            computed_gflops=cell.computed,
            verdict=cell.verdict,
            frame_by_frame_gflops=executed,
        )
    sheet.notes.append(
        "Printed as one joint match over all 6272 tokens; the method matches each frame by itself, which is 30 times less."
    )
    return [sheet]
