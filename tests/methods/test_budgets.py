"""Published budgets, knobs and refusals of the methods after the seed ones; that those which read the question do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import tiny_clip
from tokenzoo_plugins.cdpruner import CDPruner
from tokenzoo_plugins.dart import DART
from tokenzoo_plugins.fitprune import FitPrune
from tokenzoo_plugins.framefusion import FrameFusion
from tokenzoo_plugins.gprune import GPrune
from tokenzoo_plugins.mmtok import MMTok
from tokenzoo_plugins.sparsevlm import SparseVLM
from tokenzoo_plugins.v2drop import V2Drop
from tokenzoo_plugins.vidcom2 import VidCom2

import tokenzoo
from tokenzoo import Architecture, Source, UnreachableError, UnsupportedError, UserError, Workload
from tokenzoo.testing.inputs import Words, tiny_inputs
from tokenzoo.testing.models import tiny_model


def decoder(layers: int) -> Architecture:
    return Architecture("tiny", 64, layers, 4, 2, 96, 100, encoder_hidden=32, encoder_layers=4, encoder_heads=4, has_cls=True)


def mean(method: Any, layers: int, tokens: int = 576) -> float:
    return sum(method.schedule(Workload.images(decoder(layers), tokens, 40))) / layers


def test_means_over_the_layers_are_the_published_ones() -> None:
    assert [mean(SparseVLM(), 32), mean(SparseVLM(version=2, ratios=(0.5208, 0.3472, 0.2049)), 32)] == [206.5, 206.75]
    assert mean(SparseVLM(ratios=(0.1146, 0.0521, 0.0295)), 32) == pytest.approx(82.3, abs=0.1)
    assert mean(V2Drop(), 32) == pytest.approx(202.8, abs=0.1)
    assert mean(V2Drop(ratios=(0.25, 0.05, 0.0)), 28, 1000) == pytest.approx(226, abs=2)
    assert mean(DART(budget=128), 32) == pytest.approx(159.8, abs=0.1)


def test_darts_pivots_come_on_top_of_the_budget() -> None:
    assert [DART(budget=budget).kept(576, 32) for budget in (192, 128, 64)] == [{1: 196}, {1: 132}, {1: 68}]
    assert DART(budget=320).kept(2880, 32) == {1: 324} and DART(ratio=0.778).kept(576, 32) == {1: 124}
    assert DART(budget=128).kept(20, 32) == {1: 20} and DART(ratio=1.0).kept(576, 32) == {1: 4}
    assert DART().at_retention(1.0, 32).kept(39, 32) == {1: 39}


@pytest.mark.parametrize("method", [SparseVLM(), SparseVLM(version=2), V2Drop()], ids=str)
def test_the_knob_sets_the_mean_over_the_layers(method: Any) -> None:
    for retention in (0.25, 0.5, 0.9):
        assert mean(method.at_retention(retention, 28), 28, 10_000) / 10_000 == pytest.approx(retention, abs=2e-3)
    assert mean(method.at_retention(1.0, 28), 28) == 576
    with pytest.raises(UnreachableError, match=f"'{method.name}' sees all tokens in 3 "):
        method.at_retention(0.05, 28)


def test_shallow_models_have_the_last_stages() -> None:
    assert sorted(SparseVLM().kept(100, 3)) == [0, 1] and sorted(V2Drop().kept(100, 3)) == [0, 1]
    assert V2Drop().kept(100, 3) == {0: 50, 1: 1}


@pytest.mark.parametrize("name", ["SparseVLM", "V2Drop"])
def test_stages_must_fit_each_other(name: str) -> None:
    method = {"SparseVLM": SparseVLM, "V2Drop": V2Drop}[name]
    with pytest.raises(UserError, match=f"{name} needs one ratio for each stage: 2 stages, 3 ratios"):
        method(layer_list=(2, 4))
    with pytest.raises(UserError, match=f"{name}'s layer_list must ascend"):
        method(layer_list=(4, 2, 6))


def test_sparsevlms_positions_follow_its_version() -> None:
    assert [SparseVLM(version=version).layer_positions for version in (1, 2)] == ["renumber", "keep"]
    assert SparseVLM(position="keep").layer_positions == "keep"


def test_vidcom2_as_released_asks_the_picture() -> None:
    video = Workload.video(decoder(28), 8, 196, 20)
    assert VidCom2().schedule(video)[0] == 392 and VidCom2().fixed_schedule
    assert not VidCom2(rounding="released").fixed_schedule


def test_gprune_leaves_one_token_of_each_view() -> None:
    assert GPrune(retention=0.1).left((5, 0, 40), Source("image", (5, 0, 40)), decoder(2)) == [1, 0, 4]


# --- the question ---------------------------------------------------------------------------------------------------


def kept(method: Any, questions: list[str] | None, tokenizer: Any = None) -> list[list[int]]:
    """What is left of each sample of a batch that shows the same picture and text three times."""
    model = tiny_model("llava", layers=3)
    one = tiny_inputs(model, "single")
    inputs = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in one.items()}
    with torch.no_grad(), tokenzoo.apply(model, method, questions=questions, tokenizer=tokenizer) as run:
        model(**inputs)
    return [sample.entry for sample in run.trace.samples]


@pytest.mark.parametrize("name", ["mmtok", "cdpruner"])
def test_each_samples_own_question_decides(name: str) -> None:
    method = MMTok(retention=0.2) if name == "mmtok" else CDPruner(retention=0.2, text_tower=tiny_clip())
    red, same, blue = kept(method, ["a picture", "a picture", "stands what b c in"], Words())
    assert red == same and red != blue


def test_mmtok_without_a_question_reads_the_prompt() -> None:
    rows = kept(MMTok(retention=0.2), None)
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(UnsupportedError, match="Pass tokenizer="):
        kept(MMTok(retention=0.2), ["what"] * 3)


def test_cdpruner_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cdpruner:text_tower=DIRECTORY"):
        kept(CDPruner(), ["what"] * 3)
    with pytest.raises(UserError, match="is no directory of a CLIP model"):
        kept(CDPruner(text_tower=str(tmp_path)), ["what"] * 3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError, match="type 'siglip', not CLIP"):
        kept(CDPruner(text_tower=str(tmp_path)), ["what"] * 3)
    with pytest.raises(UnsupportedError, match="width 16, this model's has 32: they are no pair"):
        kept(CDPruner(text_tower=tiny_clip(16)), ["what"] * 3)
    with pytest.raises(UnsupportedError, match="Pass questions="):
        kept(CDPruner(text_tower=tiny_clip()), None)
    with pytest.raises(UnsupportedError, match="no text tower belongs to it"):
        CDPruner(text_tower=tiny_clip()).check_model(Architecture("siglip", 64, 2, 4, 2, 96, 100, encoder_hidden=32))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(tiny_clip()) / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no CLIP model with its tokenizer"):
        kept(CDPruner(text_tower=str(tmp_path)), ["what"] * 3)


def test_fitprunes_table_is_exact_where_it_was_made_and_stretched_elsewhere() -> None:
    method = FitPrune(delete=(20, 30, 0, 25), tokens=100)
    assert method.kept(100, 4) == {0: 80, 1: 50, 3: 25}
    assert method.kept(200, 4) == {0: 160, 1: 100, 3: 50}
    assert method.kept(100, 8) == {0: 90, 1: 80, 2: 65, 3: 50, 6: 38, 7: 25}
    assert method.kept(100, 2) == {0: 50, 1: 25}
    assert FitPrune(delete=(60, 60, 5), tokens=100).kept(100, 3) == {0: 40, 1: 0}
    architecture = decoder(4)
    assert method.schedule(Workload.images(architecture, 100, 40)) == [100, 80, 50, 50]
    assert method.mlp_schedule(Workload.images(architecture, 100, 40)) == [80, 50, 50, 25]


def test_fitprunes_knob_sets_the_mean_over_the_layers() -> None:
    for retention in (0.2, 0.5, 0.9):
        assert mean(FitPrune().at_retention(retention, 28), 28, 10_000) / 10_000 == pytest.approx(retention, abs=2e-3)
    assert mean(FitPrune().at_retention(1.0, 28), 28) == 576
    with pytest.raises(UnreachableError, match="'fitprune' sees all tokens in 15 of 28 layers"):
        FitPrune(delete=(0, 10), tokens=20).at_retention(0.1, 28)


@pytest.mark.parametrize(("family", "case"), [("llava", "single"), ("llava-onevision", "video")])
def test_framefusion_spends_its_budget(family: str, case: str) -> None:
    model = tiny_model(family, layers=12)
    for cost in (0.3, 0.6):
        with tokenzoo.apply(model, FrameFusion(cost=cost)) as run, torch.no_grad():
            model(**tiny_inputs(model, case))
        counts = run.trace.visual_tokens()
        assert sum(counts) / 12 == pytest.approx(cost * sum(run.trace.samples[0].visual), abs=1)


def test_framefusion_merges_frames_that_stay_the_same() -> None:
    """A still video: before layer 0 one frame and the newline are left; then pruning, once the layers have nothing to merge."""
    model = tiny_model("llava-onevision", layers=12)
    inputs = tiny_inputs(model, "video")
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, :1].expand_as(inputs["pixel_values_videos"]).clone()
    with tokenzoo.apply(model, FrameFusion(cost=0.2)) as run, torch.no_grad():
        model(**inputs)
    sample = run.trace.samples[0]
    entered, frames = sum(sample.visual), inputs["pixel_values_videos"].shape[1]
    counts = run.trace.visual_tokens()
    assert counts[0] == 1 + (entered - 1) // frames
    assert counts[0] == counts[1] > counts[2] == counts[-1] and sum(counts) / 12 == pytest.approx(0.2 * entered, abs=1)
    assert set(sample.exits().values()) == {(-1, "attention"), (1, "attention")}


def test_a_budget_below_one_layer_is_out_of_reach() -> None:
    with pytest.raises(UnreachableError, match="'framefusion' may see all tokens in one layer of 12"):
        FrameFusion().at_retention(0.05, 12)
