"""benchmarks/gpu.py, which is for whoever has a GPU, runs from end to end where there is none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_from_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    methods = ("none", "aim", "fastv", "prumerge")
    command = [sys.executable, str(PROGRAM), "--tiny", "--rounds", "1", "--minutes", "60", "--hardware", "h100"]
    done = subprocess.run([*command, "--json", str(file), "--methods", *methods], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    tables = {table["scenario"]: {row["method"]: row for row in table["rows"]} for table in report["tables"]}
    assert list(tables) == ["tiny qwen2, 4 frames", "tiny qwen2, 2 frames", "tiny qwen2, 12 frames", "tiny llava, image"]
    for rows in tables.values():
        assert {"raw model", "none", "aim", "fastv"} <= set(rows)
        assert rows["aim"]["flops"] < rows["fastv"]["flops"] < rows["none"]["flops"]
        assert rows["aim"]["launches"] > rows["none"]["launches"] > 0 == rows["none"]["own_share"][0]
        assert all(len(row["prefill_ms"]) == 1 and row["prefill_ms"][0] > 0 for row in rows.values())
        assert all(row["decode_ms"][0] > 0 for name, row in rows.items() if name != "raw model")
        assert 0 < rows["aim"]["own_share"][0] < 1
        assert 0 < rows["aim"]["roofline"] < rows["none"]["roofline"]
    assert "prumerge" in tables["tiny llava, image"]
    refused = "refused: 'prumerge' reads the vision encoder, and a bare decoder has none. Apply it to the whole model."
    assert report["tables"][0]["left_out"] == {"prumerge": refused}
    assert report["kit"]["runs"] >= len(methods) and report["kit"]["findings"] == []
    for words in ("tiny qwen2, 4 frames: 64 visual + 10 text tokens", "| aim ", "0 findings"):
        assert words in done.stdout


def test_ratios_are_taken_within_a_round(gpu: Any) -> None:
    none = gpu.Measured("none", flops=100, prefill_ms=[10.0, 20.0, 10.0])
    half = gpu.Measured("half", flops=50, prefill_ms=[6.0, 10.0, 5.0])
    results = gpu.Results("a", "sdpa", 6272, 100, [none, half])
    assert results.ratio(half) == 0.5 and results.flops_ratio(half) == 0.5 and results.kept(half) == 1.0


def test_targets_are_judged(gpu: Any) -> None:
    raw = gpu.Measured("raw model", prefill_ms=[10.0])
    none = gpu.Measured("none", flops=100, prefill_ms=[10.2])
    aim = gpu.Measured("aim", flops=50, prefill_ms=[5.1], own_share=[0.02])
    vtw = gpu.Measured("vtw", flops=50, prefill_ms=[6.0])
    lines = gpu.targets([gpu.Results("video", "sdpa", 6272, 100, [raw, none, aim, vtw])])
    assert [line.split(":")[0] for line in lines] == ["MISSED", "met", "met", "MISSED"]
    assert "none takes 1.020 of the raw model's time" in lines[0] and "vtw keeps 0.85" in lines[3]


def test_cards_are_known_by_name(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in {
        "NVIDIA H100 80GB HBM3": "h100-sxm",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-80GB": "a100-80gb",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA T4": None,
    }.items():
        monkeypatch.setattr(gpu, "machine_name", lambda device, name=name: name)
        assert gpu.card(torch.device("cuda")) == entry
        assert entry is None or gpu.load_hardware(entry).peak("bfloat16") > 0


def test_no_gpu_is_one_line(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda:99"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: There is no device 'cuda:99' here.") and said.count("\n") == 1
