"""ToMe's schedules: what is left in which encoder layer, and what that saves."""

from __future__ import annotations

import pytest
from tokenzoo_plugins.tome import ToMe

from tokenzoo import Architecture, Source, UnsupportedError, UserError, Workload
from tokenzoo.cost import load_architecture, price
from tokenzoo.method.workload import EncoderCut
from tokenzoo.zoo.plugins import load_zoo

MODEL = load_architecture("llava-1.5-7b")


def left(method: ToMe, patches: int = 576) -> list[int]:
    return list(method.encoder_kept(patches, MODEL.decoder).values())


def test_a_constant_r_merges_as_many_in_each_of_the_layers_that_count() -> None:
    assert left(ToMe(r=16)) == [576 - 16 * layer for layer in range(1, 24)]
    assert ToMe(r=16).schedule(MODEL.image_workload()) == [208] * 32 and ToMe().projector_tokens(MODEL.image_workload()) == 208
    assert left(ToMe(r=400))[:4] == [288, 144, 72, 36]  # no more than half of the patches
    assert left(ToMe(r=0)) == [576] * 23 and left(ToMe(), 0) == [0] * 23 and left(ToMe(), 1) == [1] * 23


def test_r_rises_falls_or_is_a_list() -> None:
    assert ToMe(r=16, inflection=-1).merges(23)[:3] == [32, 30, 29] and ToMe(r=16, inflection=-1).merges(23)[-1] == 0
    assert ToMe(r=16, inflection=1).merges(3) == [0, 16, 32] and ToMe(r=10, inflection=0.5).merges(2) == [5, 15]
    assert ToMe(r=(5, 0, 7)).merges(5) == [5, 0, 7, 0, 0] and ToMe(r=(5, 0, 7)).merges(2) == [5, 0]
    assert str(ToMe(r=(5, 0, 7))) == "tome:r=[5,0,7]" and load_zoo().build("tome:r=[5,0,7]").reducers[0] == ToMe(r=(5, 0, 7))


@pytest.mark.parametrize(("preset", "tokens", "r", "last"), [("192", 192, 17, 10), ("128", 128, 20, 8), ("64", 64, 23, 6)])
def test_presets_leave_exactly_what_they_say(preset: str, tokens: int, r: int, last: int) -> None:
    (method,) = load_zoo().build(f"tome@tokens-{preset}").reducers
    steps = left(method)
    merged = [before - after for before, after in zip([576, *steps], steps, strict=False)]
    assert steps[-1] == tokens and merged == [r] * 22 + [last] and sum(merged) == 576 - tokens


@pytest.mark.parametrize("retention", [0.01, 0.05, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("patches", [1, 2, 7, 36, 576, 729])
def test_the_knob_leaves_its_share_where_pairs_allow(patches: int, retention: float) -> None:
    found = left(ToMe().at_retention(retention, 32), patches)[-1]
    assert found == max(1, round(retention * patches))


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("tome:r=-1", "must not be negative"),
        ("tome:r=[3,-1]", "valid integer"),
        ("tome:r=[3,1],inflection=0.5", "Leave one of them out"),
        ("tome:inflection=2", "less than or equal to 1"),
        ("tome:retention=0", "greater than 0"),
    ],
)
def test_impossible_parameters_are_one_line(specification: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_zoo().build(specification)
    assert "\n" not in str(error.value)


def test_the_encoder_costs_what_is_there() -> None:
    """CLIP-L: a layer's attention sees what entered it, its MLP what is left; layer 23 runs on what layer 22 left."""
    workload, tower = MODEL.image_workload(), MODEL.vision
    hidden, inner = tower.hidden, tower.intermediate
    flops, rows = 2 * 576 * 3 * 14 * 14 * hidden, 577
    for layer in range(24):
        flops += 2 * rows * 4 * hidden * hidden + 2 * 2 * rows * rows * hidden
        rows -= 16 if layer < 23 else 0
        flops += 2 * rows * 2 * hidden * inner
    cost, plain = price(MODEL, workload, ToMe()), price(MODEL, workload)
    assert cost.part("vision").flops == flops < plain.part("vision").flops
    assert cost.part("projector").flops * 576 == plain.part("projector").flops * 208
    matching = sum(2 * ((576 - 16 * layer) // 2) ** 2 * 64 for layer in range(23))
    merging = sum(2 * (576 - 16 * layer) // 2 * 16 * (hidden + 1) for layer in range(23))
    assert cost.part("method").flops == matching + merging
    assert price(MODEL, workload, ToMe(), batch=3).part("vision").flops == 3 * flops


def test_other_encoders_have_no_price() -> None:
    with pytest.raises(UnsupportedError, match=r"'tome' .* joins neighbouring patches"):
        ToMe().schedule(load_architecture("qwen2.5-vl-7b").image_workload(tokens=100))
    with pytest.raises(UnsupportedError, match="'tome' acts in the vision encoder, and of 'vicuna-7b' only the decoder"):
        ToMe().schedule(Workload.images(load_architecture("vicuna-7b").decoder, 576, 40))
    pooled = Workload(MODEL.decoder, (Source("video", (144,) * 4, merged=4),), 10)
    with pytest.raises(UnsupportedError, match="no grid"):
        ToMe().encoder_cuts(pooled)


def test_what_left_is_told_of_each_view() -> None:
    architecture = Architecture("a", 64, 8, 4, 4, 96, 100, encoder_hidden=32, encoder_layers=3, encoder_heads=4, feature_layer=1)
    workload = Workload(architecture, (Source("image", (9,)), Source("video", (4, 4))), 5)
    image = (EncoderCut(0, "attention", 6), EncoderCut(1, "attention", 3))
    frame = (EncoderCut(0, "attention", 2), EncoderCut(1, "attention", 1))
    assert ToMe(r=3).encoder_cuts(workload) == [image, frame, frame]
    assert ToMe(r=3).schedule(workload)[0] == 3 + 1 + 1
