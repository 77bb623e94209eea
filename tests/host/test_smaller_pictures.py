"""Pictures that are made smaller before the encoder: what the model then sees, what that costs, and who is refused."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

import tokenzoo
from tokenzoo import UnsupportedError, cli
from tokenzoo.bench.tasks import task
from tokenzoo.cost import architecture_of, price, workload_of
from tokenzoo.counting import count
from tokenzoo.models.checkpoint import load
from tokenzoo.testing import tiny_inputs, tiny_model
from tokenzoo.zoo.plugins import load_zoo

HALF = load_zoo((), ()).build("downsample:scale=0.5")


@pytest.fixture(scope="module")
def llava():
    return load("embedded:llava")


@pytest.fixture(scope="module")
def questions():
    return list(task("attribute").questions(3))


def test_the_encoder_sees_a_smaller_square_with_positions_from_between(llava, questions):
    """As a model that was made for the smaller square, its position table interpolated by us."""
    smaller = llava.scaled(0.5)
    inputs = smaller.inputs(questions)
    assert inputs["pixel_values"].shape[-2:] == (48, 48)
    with torch.inference_mode(), tokenzoo.apply(llava.model, HALF, scaled=True) as run:
        logits = llava.model(**inputs, logits_to_keep=1).logits
    assert run.trace.visual_tokens() == [36] * llava.layers
    other = deepcopy(llava.model)
    embeddings = other.model.vision_tower.embeddings
    table = embeddings.position_embedding.weight.detach()
    grid = torch.nn.functional.interpolate(table[1:].T.unflatten(1, (12, 12))[None], (6, 6), mode="bicubic", align_corners=False)
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(torch.cat([table[:1], grid[0].flatten(1).T]))
    embeddings.position_ids, embeddings.image_size = torch.arange(37)[None], 48
    with torch.inference_mode():
        expected = other(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_what_it_counts_is_what_it_costs(llava, questions):
    inputs = llava.scaled(0.5).inputs(questions[:1])
    counted = count(llava.model, inputs, HALF)
    architecture = architecture_of(llava.model)
    workload = workload_of(counted.trace.samples[0], architecture.decoder)
    cost = price(architecture, workload, HALF, head_positions="all")
    assert counted.flops == counted.torch_flops == cost.flops
    full = count(llava.model, llava.inputs(questions[:1]), "none").trace
    vision = price(architecture, workload_of(full.samples[0], architecture.decoder)).part("vision").flops
    assert cost.part("vision").flops < vision / 3


def test_qwen_keeps_the_size_of_a_picture():
    model, inputs = tiny_model("qwen2-vl"), tiny_inputs(tiny_model("qwen2-vl"), "single")
    with torch.inference_mode(), tokenzoo.apply(model, HALF, scaled=True):
        logits = model(**inputs).logits
        expected = model(**inputs).logits
    assert torch.equal(logits, expected)


def test_pictures_of_one_size_and_inputs_of_full_pictures_are_refused(llava):
    with (
        pytest.raises(UnsupportedError, match="makes all of one size again"),
        tokenzoo.apply(tiny_model("llava-next"), HALF, scaled=True),
    ):
        pass
    with pytest.raises(UnsupportedError, match="pass scaled=True"), tokenzoo.apply(llava.model, HALF):
        pass


def test_a_comparison_sets_it_to_the_budget(tmp_path, capsys):
    options = ["--tasks", "attribute", "--limit", "4", "--no-timing", "--format", "json", "--store", str(tmp_path / "s.sqlite")]
    assert cli.run(["compare", "--model", "embedded:llava", "--methods", "downsample", "--budget", "50%", *options]) == 0
    *_, row = json.loads(capsys.readouterr().out)["sections"][0]["rows"]
    assert row["label"] == "downsample:scale=0.707" and row["visual_tokens"] == 64 and row["visual_share"] == 64 / 144
