"""The AIM tables: all 43 rows recomputed from the plugins' own schedules with the registry's presets."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from tokenzoo.commands.reproduce import command
from tokenzoo.cost.aim_overhead import recompute_overhead
from tokenzoo.cost.published import PublishedRow, as_released, load_paper, recompute, round_half_up, select
from tokenzoo.errors import UserError
from tokenzoo.zoo.plugins import load_zoo

PAPER = load_paper("aim-iccv2025")
#: the cells that are not plain agreements, and why the registry's note says so
TWICE = {("video_benchmarks", "FastV", "tflops")}
MISPRINTS = {("video_benchmarks", "VTW", "prefill_ms"), ("image_benchmarks", "LLaVA-PruMerge+", "prefill_ms")}


@pytest.mark.parametrize("row", PAPER.rows, ids=lambda row: f"{row.table} {row.name}")
def test_row(row: PublishedRow) -> None:
    assert row.method == "none" or "@" in row.method
    done = recompute(PAPER, row, load_zoo().build(row.method))
    assert done.cost.visual_tokens == row.visual_tokens
    for name, cell in (("tflops", done.tflops), ("prefill_ms", done.prefill_ms)):
        key = (row.table, row.name, name)
        expected = "rounded twice" if key in TWICE else "differs" if key in MISPRINTS else "agrees"
        assert cell.verdict == expected
        assert expected == "agrees" or row.note


def test_84_of_86_cells() -> None:
    cells = [cell for row in PAPER.rows for cell in recompute(PAPER, row, load_zoo().build(row.method)).cells]
    assert len(PAPER.rows) == 43
    assert Counter(cell.verdict for cell in cells) == {"agrees": 83, "rounded twice": 1, "differs": 2}


def test_the_overhead_numbers_agree() -> None:
    cells = {name: cell for name, cell, _ in recompute_overhead(PAPER)}
    assert {name: cell.printed for name, cell in cells.items()} == {
        "token_merging": "88.25",
        "token_pruning": "4.18",
        "total": "92.43",
        "llm_inference": "14757",
    }
    assert all(cell.verdict == "agrees" for cell in cells.values())
    executed = {name: value for name, _, value in recompute_overhead(PAPER)}
    assert executed["token_merging"] == pytest.approx(2.89, abs=0.005)


def test_as_released_prunes_one_layer_later() -> None:
    row = next(row for row in PAPER.rows if row.name == "AIM")
    reducer = as_released(load_zoo().build(row.method))
    released = recompute(PAPER, row, reducer).cost.visual_tokens
    assert released == (row.visual_tokens[0], *row.visual_tokens[:-1])
    assert as_released(load_zoo().build("fastv")) is None


def test_rounding_is_half_up() -> None:
    assert round_half_up(21.235, 2) == "21.24"
    assert round_half_up("0.125", 2) == "0.13"
    assert round_half_up(21.2349, 2) == "21.23"


def test_the_command_in_every_format() -> None:
    runner = CliRunner()
    table = runner.invoke(command, ["aim-iccv2025"])
    assert table.exit_code == 0, table.output
    assert "43 rows: 84 of 86 cells agree" in table.output
    data = json.loads(runner.invoke(command, ["aim-iccv2025", "--format", "json"]).output)
    assert sum(len(sheet["rows"]) for sheet in data[:6]) == 43
    for form, mark in (("md", "| VTW | 22.38 |"), ("latex", r"\toprule"), ("csv", "table,row,method")):
        output = runner.invoke(command, ["aim-iccv2025", "--format", form]).output
        assert mark in " ".join(output.split())  # cells are padded


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'aim-iccv2025'"):
        load_paper("aim-iccv2024")
    with pytest.raises(UserError, match="image_benchmarks"):
        select(PAPER, ["image_benchmark"])
