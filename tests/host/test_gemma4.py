"""Gemma 4: inputs of its own for each layer, layers that read the keys of earlier ones, last rows alone, padded pictures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from installed import WHOLE_GEMMA4

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError
from tokenzoo.cost import load_architecture, price
from tokenzoo.testing.inputs import take_sample, tiny_inputs
from tokenzoo.testing.models import IMAGE, tiny_model
from tokenzoo.zoo.plugins import load_zoo

#: In the tiny model the layers 9 to 11 of 12 read keys and values of the layers 7 and 8.
LAYERS = 12


@pytest.mark.parametrize("method", ["vtw:K=8", "vtw:K=11", "aim", "random+vtw:K=9", "framefusion"])
def test_tokens_are_not_dropped_between_a_layer_and_those_that_read_its_keys(method: str) -> None:
    message = r"last 3 layers read keys and values of layers 7, 8.* after layers 0 to 6"
    with pytest.raises(UnsupportedError, match=message), tokenzoo.apply(tiny_model("gemma4", layers=LAYERS), method):
        pass
    with tokenzoo.apply(tiny_model("gemma4", layers=LAYERS), "vtw:K=7"):
        pass


def test_a_price_is_refused_where_the_method_is() -> None:
    model = load_architecture("gemma4-e2b")
    with pytest.raises(UnsupportedError, match=r"of layers 13, 14.* after layers 0 to 12"):
        price(model, model.image_workload(), load_zoo().build("vtw:K=14"))
    cost = price(model, model.image_workload(), load_zoo().build("vtw:K=13"))
    assert cost.kv_bytes_per_layer[15:] == (0,) * 20 and cost.tokens[12:14] == (320, 40)
    rows = {priced.operation.name: priced.operation.flops for priced in cost.layers[20].operations}
    assert rows["q"] == 2 * 1 * 1536 * 8 * 256 and "k" not in rows  # in generate, the last row alone goes through it


@pytest.mark.parametrize("family", ["gemma4", "gemma4-moe"])
@pytest.mark.parametrize("method", ["random:retention=0.5", "fastv:K=2", "none"])
def test_a_call_gets_the_last_rows_that_it_asks_for(family: str, method: str) -> None:
    """transformers cuts them only where the decoder returns as many rows as the prompt has."""
    model = tiny_model(family, layers=LAYERS)
    inputs = tiny_inputs(model, "left")
    with tokenzoo.apply(model, method), torch.no_grad():
        everything = model(**inputs).logits
        for keep in (1, 3):
            torch.testing.assert_close(model(**inputs, logits_to_keep=keep).logits, everything[:, -keep:])


@pytest.mark.skipif(not WHOLE_GEMMA4, reason="All rows go through these layers before transformers 5.23.")
def test_layers_that_read_earlier_keys_run_on_the_last_row_in_generate() -> None:
    model, rows = tiny_model("gemma4", layers=LAYERS), []
    handle = model.model.language_model.layers[9].mlp.register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[1])
    )
    with tokenzoo.apply(model, "fastv:K=2"), torch.no_grad():
        model.generate(**tiny_inputs(model, "left"), max_new_tokens=1, do_sample=False)
    handle.remove()
    assert rows == [1]


def test_a_prompt_that_ends_with_a_picture_loses_its_last_rows() -> None:
    """The layers that read earlier keys are given the last rows; here those are other ones than the prompt's."""
    model = tiny_model("gemma4", layers=LAYERS)
    inputs = take_sample(tiny_inputs(model, "left"), "left", 0)
    last = int((inputs["input_ids"][0] == IMAGE).nonzero()[-1])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, : last + 1]
    with tokenzoo.apply(model, "vtw:K=3") as run, torch.no_grad():
        everything = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, everything[:, -1:])
    assert everything.shape[1] == len(run.trace.samples[0].rows(LAYERS - 1)) < last


@dataclass
class Looks(TokenReducer):
    """Writes down what the encoder knows."""

    name: ClassVar[str] = "looks"

    def early(self, source, architecture):
        return True

    def left(self, views, source, architecture):
        return sum(views) // 2

    def encoder_layers(self, architecture):
        return (1,)

    def reduce(self, tokens):
        seen = {"attention": tokens.encoder_attention(1, "all"), "features": tokens.encoder_features(1)}
        self.told = [*getattr(self, "told", []), {**seen, "keys": tokens.encoder_keys(1)}]  # the test reads it
        return torch.arange(0, len(tokens.features), 2)[: sum(tokens.left)]


@pytest.mark.parametrize("case", ["left", "video"])
def test_the_encoder_of_padded_pictures(case: str) -> None:
    """The third picture is smaller: its patches are padded; the mean of a token's four patches counts."""
    model = tiny_model("gemma4", "eager", layers=LAYERS)
    inputs, method = tiny_inputs(model, case), Looks()
    name = "video" if case == "video" else "image"
    positions = inputs[f"{name}_position_ids"]
    pixels = inputs["pixel_values_videos" if case == "video" else "pixel_values"]
    with torch.no_grad():
        outputs: list[torch.Tensor] = []
        layer = model.model.vision_tower.encoder.layers[1]
        handle = layer.register_forward_hook(lambda m, a, out: outputs.append(out))
        maps = model.model.vision_tower(pixels, positions, output_attentions=True).attentions[1]
        handle.remove()
        with tokenzoo.apply(model, method):
            model.generate(**inputs, max_new_tokens=1)
    views = 3 if case == "video" else 1
    for number, told in enumerate(method.told):
        for view in range(views):
            place = number * views + view
            valid = (positions[place] >= 0).all(-1)
            columns, rows = (positions[place].amax(0) + 1).tolist()
            tokens = rows * columns // 4
            weights = maps[place][:, valid][:, :, valid].mean(1)  # [heads, patches]
            own = slice(view * tokens, (view + 1) * tokens)

            def pooled(values: torch.Tensor, rows: int = rows, columns: int = columns) -> torch.Tensor:
                return values.unflatten(0, (rows // 2, 2, columns // 2, 2)).mean((1, 3)).flatten(0, 1)

            torch.testing.assert_close(told["attention"][:, own], pooled(weights.T).T, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(told["features"][own], pooled(outputs[0][place, valid]), atol=1e-5, rtol=1e-4)
            assert told["keys"][own].shape == (tokens, 8)


@dataclass
class Tells(TokenReducer):
    """Writes down the attention after layer `layer`, of it and the next one."""

    name: ClassVar[str] = "tells"
    layer: int = 1

    def kept(self, entered, layers):
        return {self.layer: entered // 2}

    def score(self, layer):
        rows = torch.arange(len(layer.hidden_states))
        self.told = layer.attention(rows), layer.next_attention(rows)  # the test reads it
        return layer.visual.float()


@pytest.mark.parametrize("family", ["gemma4", "gemma4-moe"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_attention_of_a_layer_and_the_next(family: str, layer: int) -> None:
    """Wider heads and another rotary embedding in layer 1; in the large model images open to themselves but there."""
    model = tiny_model(family, "eager", layers=LAYERS)
    inputs, method = take_sample(tiny_inputs(model, "left"), "left", 1), Tells(layer=layer)
    with torch.no_grad():
        stock = model(**inputs, output_attentions=True).attentions
        with tokenzoo.apply(model, method):
            model(**inputs)
    for told, number in zip(method.told, (layer, layer + 1), strict=True):
        torch.testing.assert_close(told, stock[number][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_a_forward_that_does_not_say_how_many_frames_a_video_has_is_refused(told: bool) -> None:
    model = tiny_model("gemma4", layers=3)
    inputs = tiny_inputs(model, "video")
    if not told:
        del inputs["num_frames_per_video"]
    refusal = pytest.raises(UnsupportedError, match=r"need num_frames_per_video.*'transformers>=5\.23', or call generate")
    with tokenzoo.apply(model, "random:retention=0.5") as run, torch.no_grad():
        with nullcontext() if told and WHOLE_GEMMA4 else refusal:
            model(**inputs)
        if told:
            model.generate(**inputs, max_new_tokens=2)
            assert run.trace.visual_tokens() == [36] * 3


def test_patches_in_another_order_are_refused() -> None:
    model = tiny_model("gemma4", layers=3)
    inputs = tiny_inputs(model, "single")
    inputs["image_position_ids"] = inputs["image_position_ids"].flip(1)
    with tokenzoo.apply(model, "random"), pytest.raises(UnsupportedError, match="raster order"):
        model(**inputs)


def test_a_model_in_which_all_tokens_see_each_other_is_refused() -> None:
    model = tiny_model("gemma4", layers=3)
    model.config.text_config.use_bidirectional_attention = "all"
    with pytest.raises(UnsupportedError, match="only a causal one"), tokenzoo.apply(model, "random"):
        pass
