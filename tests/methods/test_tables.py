"""The presets of registry.yaml against every row of the AIM paper's tables: token for token, layer for layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenzoo.cost
from tokenzoo import Architecture, Workload
from tokenzoo.zoo.plugins import load_zoo
from tokenzoo.zoo.registry import load_registry

PAPER = yaml.safe_load((Path(tokenzoo.cost.__file__).parent / "tables" / "aim_iccv2025.yaml").read_text())
ROWS = {(table, row["row"]): row for table, rows in PAPER["tables"].items() if isinstance(rows, list) for row in rows}
METHODS = load_registry(extra=()).methods
PUBLISHED = [(name, entry) for name, method in METHODS.items() for entry in method.published]
PRESETS = [(name, preset) for name, method in METHODS.items() for preset in method.presets]


def workload(row: dict[str, Any], table: str) -> Workload:
    """What the row was priced with: 32 frames of 196 tokens, or one image."""
    shape = PAPER["architectures"][row["arch"]]
    sizes = {key: shape[key] for key in ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocab")}
    architecture = Architecture(row["arch"], **sizes)
    if row["arch"] != "qwen2-7b":
        tokens = 256 if row["arch"] == "qwen-vl-chat-7b" else 576
        return Workload.images(architecture, tokens, row["text_tokens"])
    frames, tokens = {"LongVA-7B": (128, 144), "AIM 192 frames": (192, 196)}.get(row["row"], (32, 196))
    return Workload.video(architecture, frames, tokens, row["text_tokens"])


@pytest.mark.parametrize(("name", "entry"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else f"{v['table']} {v['row']}")
def test_schedule_of_every_row(name: str, entry: dict[str, Any]) -> None:
    row = ROWS[entry["table"], entry["row"]]
    method = load_zoo().build(f"{name}@{entry['preset']}" if "preset" in entry else name)
    expected = [tokens for tokens, layers in row["visual_tokens"] for _ in range(layers)]
    assert method.schedule(workload(row, entry["table"])) == expected
    assert entry["accuracy"] == row["accuracy"] and entry["architecture"] == row["arch"]


def test_every_row_has_one_method() -> None:
    assert sorted((entry["table"], entry["row"]) for _, entry in PUBLISHED) == sorted(ROWS)


def test_every_row_preset_is_named_by_a_row() -> None:
    used = {(name, entry.get("preset")) for name, entry in PUBLISHED}
    for name, preset in PRESETS:
        described = METHODS[name].presets[preset].description
        assert ((name, preset) in used) == described.startswith("table "), (name, preset)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_builds(name: str, preset: str) -> None:
    method = load_zoo().build(f"{name}@{preset}").reducers[0]
    for parameter, value in METHODS[name].presets[preset].parameters.items():
        set_to = getattr(method, parameter)
        assert list(set_to) == value if isinstance(value, list) else set_to == value


def test_as_released_aim_prunes_one_layer_later_than_its_tables() -> None:
    row = ROWS["video_benchmarks", "AIM"]
    priced = load_zoo().build("aim@video").schedule(workload(row, "video_benchmarks"))
    released = load_zoo().build("aim@official-video").schedule(workload(row, "video_benchmarks"))
    assert released == [1568, *priced[:-1]]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_described(name: str) -> None:
    method = METHODS[name]
    assert method.title and method.summary and method.faithfulness
    assert method.paper is None or (method.paper.arxiv and method.paper.code and method.paper.venue)
