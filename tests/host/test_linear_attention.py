"""Layers that keep a state in place of keys (Qwen3.5): rows may go after any of them, their attention cannot be read."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError
from tokenzoo.cost import load_architecture, price
from tokenzoo.testing.case import Case, run
from tokenzoo.testing.check import tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.guarantees import check_logits
from tokenzoo.testing.inputs import cases_of, take_sample, tiny_inputs
from tokenzoo.testing.models import tiny_model
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.plugins import load_zoo

#: In the tiny model layers 1, 4, 7 and 10 of 12 attend, the others are linear.
LAYERS = 12
#: Methods that read attention at those layers, and such that drop rows after linear ones, before the first cache too.
ABLE = [
    "fastv:K=5",
    "pdrop:layer_list=[1,4,7],ratios=[0.7,0.5,0.2]",
    "sparsevlm:layer_list=[2,5,8]",
    "sparsevlm:version=2,layer_list=[2,5,8]",
    "dart:K=8",
    "vtw:K=1",
    "v2drop:layer_list=[1,2,6]",
    "random:retention=0.5+vtw:K=3",
]


@pytest.mark.parametrize("case", cases_of("qwen3_5"))
@pytest.mark.parametrize("method", ABLE)
def test_what_is_left_is_the_next_layers_sequence(method: str, case: str) -> None:
    backend = "eager" if len(method) % 2 else "sdpa"
    report = check_case(tiny_case("qwen3.5", case, backend, LAYERS), load_zoo().build(method).reducers)
    assert [str(finding) for finding in report.findings] == [] and report.dropped


@pytest.mark.parametrize(
    ("method", "layer"),
    [("fastv:K=3", 2), ("aim", 6), ("pdrop:layer_list=[3],ratios=[0.5]", 3), ("dart:K=1", 0), ("sparsevlm", 0)],
)
def test_a_method_that_reads_a_linear_layer_is_refused_before_anything_runs(method: str, layer: int) -> None:
    model = tiny_case("qwen3.5", "single", layers=LAYERS).model
    message = f"{method.partition(':')[0]}.* reads the attention of decoder layer {layer}.* 1, 4, 7, 10 of 12"
    with pytest.raises(UnsupportedError, match=message), tokenzoo.apply(model, method):
        pass


def test_a_price_is_refused_where_the_method_is() -> None:
    model = load_architecture("qwen3.5-9b")
    workload = model.image_workload()
    with pytest.raises(UnsupportedError, match="3, 7, 11, 15, 19, 23, 27, 31 of 32"):
        price(model, workload, load_zoo().build("fastv"))
    assert price(model, workload, load_zoo().build("fastv:K=4")).flops < price(model, workload).flops


@dataclass
class Furtive(TokenReducer):
    """Reads attention only of pictures that are none of the stand-ins by which it could be found out."""

    name: ClassVar[str] = "furtive"

    def kept(self, entered, layers):
        return {2: entered // 2}

    def pick(self, layer, count):
        if len(layer.visual) != 64:
            layer.attention("last")
        return torch.arange(count)


def test_a_method_that_was_not_found_out_is_refused_when_it_asks() -> None:
    model = tiny_model("qwen3.5", layers=4)
    with tokenzoo.apply(model, Furtive()), pytest.raises(UnsupportedError, match="layer 2 has no attention map"):
        model(**tiny_inputs(model, "single"))


@dataclass
class Tells(TokenReducer):
    """Writes down the attention of this layer or the next."""

    name: ClassVar[str] = "tells"
    layer: int = 4
    following: bool = False

    def kept(self, entered, layers):
        return {self.layer - self.following: entered // 2}

    def score(self, layer):
        rows = torch.arange(len(layer.hidden_states))
        self.told = layer.next_attention(rows) if self.following else layer.attention(rows)  # the test reads it
        self.turned = len(layer.frequencies()) if not self.following else None
        return layer.visual.float()


@pytest.mark.parametrize("following", [False, True])
def test_the_attention_of_a_gated_layer(following: bool) -> None:
    model = tiny_model("qwen3.5", "eager", layers=LAYERS)
    inputs = take_sample(tiny_inputs(model, "left"), "left", 1)
    method = Tells(following=following)
    with torch.no_grad():
        stock = model(**inputs, output_attentions=True).attentions[1][0]
        with tokenzoo.apply(model, method):
            model(**inputs)
    torch.testing.assert_close(method.told, stock, atol=1e-5, rtol=1e-4)
    assert method.turned in (None, 8)  # half of the channels are not turned, and count as pairs with angle 0


@pytest.mark.parametrize("method", ["vtw:K=1", "random:retention=0.5+vtw:K=1"])
def test_a_loop_by_hand_decodes_as_generate_does(method: str) -> None:
    """The cache reports the length of the first layer with keys, which has fewer rows than entered."""
    model = tiny_model("qwen3.5", layers=LAYERS)
    inputs = tiny_inputs(model, "single")
    with tokenzoo.apply(model, method), torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        output = model(**inputs, use_cache=True)
        for step, logits in enumerate(made.logits):
            torch.testing.assert_close(output.logits[:, -1], logits, atol=1e-4, rtol=1e-4)
            token = made.sequences[:, inputs["input_ids"].shape[1] + step :][:, :1]
            output = model(input_ids=token, past_key_values=output.past_key_values)


def test_the_oracle_sees_a_row_too_many_in_a_state() -> None:
    case: Case = tiny_case("qwen3.5", "left", layers=LAYERS)
    reducers = list(load_zoo().build("v2drop:layer_list=[3],ratios=[0.5]").reducers)
    outcome = run(case, [watch(reducer) for reducer in reducers])
    assert list(check_logits(case, outcome, reducers)) == []
    damaged = copy.deepcopy(outcome)
    sample = damaged.trace.samples[0]
    (first, rows), everything = sample.stages[-1], range(len(sample.entry))
    sample.stages[-1:] = [(first, sorted({*rows, next(row for row in everything if row not in rows)})), (first + 1, rows)]
    assert list(check_logits(case, damaged, reducers))  # one layer, a linear one, with one row more
