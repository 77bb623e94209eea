"""What a declaration promises is what runs: on random prompts, for every method alone and for random pairs of any two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenzoo
from tokenzoo import UnsupportedError
from tokenzoo.application import family_of
from tokenzoo.cost.traces import recorded_run
from tokenzoo.errors import UserError
from tokenzoo.method.reduction import DataDependentError, UnreachableError
from tokenzoo.method.workload import Workload
from tokenzoo.testing.models import IMAGE, VIDEO, VISION_END, VISION_START, tiny_model
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo((), ())
NAMES = [name for name in ZOO.names() if name != "none"]
LAYERS = 12
SIDE = 48

model = cache(lambda family: tiny_model(family, layers=LAYERS))


def llava(draw: Any) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    images = draw(st.integers(1, 3))
    return [(IMAGE, 36)] * images, {"pixel_values": torch.randn(images, 3, SIDE, SIDE)}


def onevision(draw: Any) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """A video of any length, or pictures of any shape."""
    if draw(st.booleans()):
        frames = draw(st.integers(1, 9))
        return [(VIDEO, frames * 9 + 1)], {"pixel_values_videos": torch.randn(1, frames, 3, SIDE, SIDE)}
    sizes = torch.tensor([[draw(st.integers(20, 150)), draw(st.integers(20, 150))] for _ in range(draw(st.integers(1, 2)))])
    arguments = {"image_sizes": sizes, "batch_num_images": torch.tensor([len(sizes)])}
    arguments["pixel_values"] = torch.randn(len(sizes), 5, 3, SIDE, SIDE)
    config = model("llava-onevision").config
    features = model("llava-onevision").model.get_image_features(
        **arguments,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        return_dict=True,
    )
    return [(IMAGE, len(part)) for part in features.pooler_output], arguments


def qwen(draw: Any) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    kind = draw(st.sampled_from(["image", "video"]))
    frames = draw(st.integers(1, 4)) if kind == "video" else 1
    grids = [(frames, 2 * draw(st.integers(1, 7)), 2 * draw(st.integers(1, 7))) for _ in range(draw(st.integers(1, 2)))]
    token = VIDEO if kind == "video" else IMAGE
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4)
    names = ("pixel_values_videos", "video_grid_thw") if kind == "video" else ("pixel_values", "image_grid_thw")
    return [(token, t * h * w // 4) for t, h, w in grids], dict(zip(names, (pixels, torch.tensor(grids)), strict=True))


FAMILIES: dict[str, Callable[[Any], tuple[list[tuple[int, int]], dict[str, Any]]]] = {
    "llava": llava,
    "llava-onevision": onevision,
    "qwen2.5-vl": qwen,
}


@st.composite
def prompts(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family, and one sample with random pictures between random lengths of text."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    torch.manual_seed(draw(st.integers(0, 99)))
    pictures, arguments = FAMILIES[family](draw)
    ids = [5] * draw(st.integers(1, 6))
    for token, count in pictures:
        ids += [VISION_START, *[token] * count, VISION_END] if family == "qwen2.5-vl" else [token] * count
        ids += [7] * draw(st.integers(1, 9))
    inputs = {"input_ids": torch.tensor([ids]), **arguments}
    if family == "qwen2.5-vl":
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    return family, inputs


@st.composite
def settings_of(draw: st.DrawFn, name: str) -> str:
    """A method at its defaults, or at a retention of its own."""
    if draw(st.booleans()):
        return name
    retention = draw(st.sampled_from([0.07, 0.2, 0.5, 0.83]))
    try:
        return str(ZOO.build(name).at_retention(retention, LAYERS))
    except UnreachableError:
        return name


def check(family: str, inputs: dict[str, Any], specification: str) -> None:
    methods = ZOO.build(specification)
    try:
        with tokenzoo.apply(model(family), methods) as run, torch.no_grad():
            model(family)(**inputs)
    except UnsupportedError:
        return  # said up front, and nothing ran
    sample = run.trace.samples[0]
    sources = tuple(source.source for source in sample.sources)
    text = sample.prompt_tokens - sum(source.tokens for source in sources)
    architecture = family_of(model(family)).architecture(model(family))
    workload = Workload(architecture, sources, text)
    cached = [sum(sample.visual[row] for row in sample.cache(layer)) for layer in range(LAYERS)]
    for schedule, happened in ((methods.schedule, run.trace.visual_tokens()), (methods.cache_schedule, cached)):
        try:
            promised = schedule(workload)
        except DataDependentError:
            promised = schedule(replace(workload, recorded=recorded_run(sample)))
        assert promised == happened, specification


RANDOM = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("name", NAMES)
@RANDOM
@given(prompt=prompts(), data=st.data())
def test_one_method(name: str, prompt: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    check(*prompt, data.draw(settings_of(name)))


@settings(RANDOM, max_examples=150)
@given(prompt=prompts(), data=st.data())
def test_two_methods(prompt: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    first, second = (data.draw(st.sampled_from(NAMES)) for _ in range(2))
    specification = f"{data.draw(settings_of(first))}+{data.draw(settings_of(second))}"
    try:
        ZOO.build(specification)
    except UserError:
        return  # a pair that cannot be written
    check(*prompt, specification)


@RANDOM
@given(prompt=prompts())
def test_what_stays_cached_is_a_share_of_what_entered_the_decoder(prompt: tuple[str, dict[str, Any]]) -> None:
    """FrameFusion removes tokens before layer 0 already."""
    check(*prompt, "framefusion+snapkv")
