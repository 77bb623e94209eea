"""What benchmarks would take, and accuracies beside printed ones: without torch's models, lmms-eval or any download."""

from __future__ import annotations

import pytest

from tokenzoo import UserError, cli
from tokenzoo.comparison.outlook import outlook
from tokenzoo.comparison.plan import methods_of
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.settings import Settings, read_config, shipped_configs
from tokenzoo.comparison.store import Store
from tokenzoo.cost.published import load_paper
from tokenzoo.lmms.known import known_benchmarks
from tokenzoo.report.outlook import outlook_lines, outlook_rows
from tokenzoo.zoo.plugins import load_zoo


def looked(settings):
    targets = [Target.parse(text, settings.convention) for text in settings.price]
    return outlook(settings, methods_of(settings, load_zoo()), targets)


@pytest.mark.parametrize(("name", "cells", "low", "high"), [
    ("aim-iccv2025-image", 12 * 7, 20, 80), ("aim-iccv2025-video", 8 * 7, 15, 60), ("aim-iccv2025-long-video", 4 * 4, 20, 90),
])  # fmt: skip
def test_the_tables_that_ship_can_be_planned(name, cells, low, high):
    found = looked(read_config(shipped_configs()[name], {}))
    assert len(found.cells) == cells and found.hardware == "a100-40gb"
    assert low < found.gpu_hours < high
    hours = {cell.method: 0.0 for cell in found.cells}
    for cell in found.cells:
        hours[cell.method] += cell.gpu_hours
    assert all(hours["none"] > spent for method, spent in hours.items() if method != "none")
    header, rows = outlook_rows(found)
    assert all(len(row) == len(header) for row in rows) and len(rows) == 1 + len(hours)
    said = "\n".join(outlook_lines(found))
    assert f"{cells} cells" in said and "llava-hf/" in said and "To be downloaded" in said


def test_hours_are_questions_times_the_time_of_one_which_exceeds_the_printed_prefill():
    (none, *_) = looked(Settings(methods="aim", tasks="lmms:pope", price=["llava-1.5-7b@a100"], limit=3600)).cells
    assert none.questions == 3600
    assert 29.3e-3 < none.gpu_hours < 5 * 29.3e-3  # AIM prints 29.3 ms of prefill for the decoder alone
    assert none.flops > 3600 * 8.18e12  # and 8.18 TFLOPs


def test_without_a_price_there_are_no_hours_and_unknown_benchmarks_have_no_count():
    found = looked(Settings(methods="aim", tasks="lmms:pope,lmms:gqa_lite", limit=10))
    assert {cell.task for cell in found.cells} == {"lmms:pope"} and found.gpu_hours is None
    said = " ".join(outlook_lines(found))
    assert "Pass --price ARCH@GPU" in said and "How many questions lmms:gqa_lite asks" in said


def test_every_printed_benchmark_of_the_paper_is_known():
    printed = {name for row in load_paper("aim-iccv2025").rows for name in row.accuracy}
    assert printed == {known.printed for known in known_benchmarks().values()}


def test_a_config_is_found_by_its_name():
    with pytest.raises(UserError, match="Did you mean 'aim-iccv2025-image'"):
        from pathlib import Path

        read_config(Path("aim-iccv2025-imag"), {})


def test_measured_accuracies_stand_beside_the_printed_ones(tmp_path, capsys):
    path = tmp_path / "results.sqlite"
    fastv = str(load_zoo().build("fastv@image-high"))
    cell = {"answers": [{}] * 500, "metrics": {"pope_f1_score": {"value": 0.751, "error": 0.012}}}
    with Store(path) as store:
        for method in ("none", fastv):
            identity = {"kind": "accuracy", "model": "llava-hf/llava-1.5-7b-hf", "method": method, "task": "lmms:pope", "seed": 0}
            store.put(identity, cell)
    assert cli.run(["reproduce", "aim-iccv2025", "--accuracy", "--store", str(path), "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("FastV (high)" in line and "73.6" in line and "75.1" in line for line in lines)
    assert any("LLaVA-1.5-7B" in line and "85.9" in line for line in lines)
    assert not any("Qwen-VL" in line or "VTW" in line for line in lines)
    assert cli.run(["reproduce", "aim-iccv2025", "--accuracy", "--store", str(tmp_path / "empty.sqlite")]) == 0
    assert "The store has no benchmark of these rows" in capsys.readouterr().out
