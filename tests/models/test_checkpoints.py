"""The checkpoints that ship: small, loaded as a user's model is, and as able as their cards say."""

import dataclasses

import pytest
import torch

import tokenzoo
from tokenzoo.bench.evaluate import blank, predict
from tokenzoo.bench.tasks import task
from tokenzoo.models.checkpoint import CHECKPOINTS, EMBEDDED, load
from tokenzoo.training.attention import measure

QUESTIONS = {"image": 40, "video": 24}
#: below the accuracies in docs/models by about two standard errors of so few questions
FLOORS = {
    "embedded:llava": {"attribute": 0.92, "relation": 0.92, "existence": 0.92, "counting": 0.75, "reading": 0.92},
    "embedded:onevision": {
        "attribute": 0.92, "relation": 0.92, "existence": 0.9, "counting": 0.77, "reading": 0.82,
        "order": 0.92, "when": 0.92, "change": 0.92,
    },
}  # fmt: skip
#: How many points a quarter or half of the tokens may cost, and what a decoder that had only seen all of them would lose.
REDUCED = [
    ("embedded:llava", "attribute", "random:retention=0.5", 0.8),
    ("embedded:llava", "attribute", "pool:stride=2", 0.85),
    ("embedded:onevision", "order", "random:retention=0.5", 0.8),
    ("embedded:onevision", "order", "pool:stride=2", 0.7),
    ("embedded:onevision", "change", "prumerge", 0.4),
]
CASES = [(model, name, floor) for model, floors in FLOORS.items() for name, floor in floors.items()]


@pytest.fixture(scope="module")
def checkpoints():
    return {name: load(name, device="cpu") for name in EMBEDDED}


def sample(name):
    return list(task(name).questions(QUESTIONS[task(name).modality], seed=0))


@pytest.mark.parametrize(("model", "name", "floor"), CASES)
def test_held_out_accuracy(checkpoints, model, name, floor):
    questions = sample(name)
    assert task(name).score(predict(checkpoints[model], questions)).accuracy >= floor


@pytest.mark.parametrize(("model", "name", "method", "floor"), REDUCED)
def test_the_decoder_reads_reduced_tokens(checkpoints, model, name, method, floor):
    with tokenzoo.apply(checkpoints[model].model, method):
        answers = predict(checkpoints[model], sample(name))
    assert task(name).score(answers).accuracy >= floor


@pytest.mark.parametrize(("model", "name"), [("embedded:llava", "attribute"), ("embedded:onevision", "order")])
def test_the_picture_is_read_after_the_first_layers(checkpoints, model, name):
    """As in large models. Without it from layer 1 on nothing is known, from layer 3 on little or half, from 9 on nearly all."""
    found = {}
    for layer in (1, 3, 9):
        with tokenzoo.apply(checkpoints[model].model, f"vtw:K={layer}"):
            found[layer] = task(name).score(predict(checkpoints[model], sample(name))).accuracy
    assert found[1] < task(name).chance + 0.15 and found[3] < 0.8 and found[9] > 0.85


@pytest.mark.parametrize("model", EMBEDDED)
def test_encoders_look_at_objects(checkpoints, model):
    """Of the object patches, 60 to 95 % are in the top quarter by every way to read attention: informative, not perfect."""
    last = measure(checkpoints[model].model, 60, video=False)[3:]
    assert {way for shares in last for way in shares} >= {"column mean", "mean query"}
    for shares in last:
        assert all(0.6 <= share <= 0.95 for share in shares.values()), shares


@pytest.mark.parametrize("model", EMBEDDED)
def test_answers_end(checkpoints, model):
    """Generated in free form, an answer is one word: the end of the sequence follows it."""
    name = "attribute" if model == "embedded:llava" else "order"
    asked = [dataclasses.replace(question, choices=()) for question in sample(name)[:8]]
    answers = predict(checkpoints[model], asked)
    assert all(len(one.answer.split()) == 1 for one in answers) and sum(one.correct for one in answers) >= 6


@pytest.mark.parametrize(("model", "name"), [("embedded:llava", "attribute"), ("embedded:onevision", "change")])
def test_blank_pictures_leave_little_more_than_chance(checkpoints, model, name):
    questions = [blank(question) for question in sample(name)]
    assert task(name).score(predict(checkpoints[model], questions)).low < task(name).chance + 0.1


def test_two_runs_give_the_same_answers(checkpoints):
    questions = list(task("reading").questions(8, seed=1))
    first, second = (predict(checkpoints["embedded:llava"], questions) for _ in range(2))
    assert first == second


def test_they_are_small_and_stock(checkpoints):
    weights = [CHECKPOINTS / name.partition(":")[2] / "model.safetensors" for name in EMBEDDED]
    assert sum(path.stat().st_size for path in weights) < 30e6
    names = [type(checkpoints[name].model).__name__ for name in EMBEDDED]
    assert names == ["LlavaForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"]
    assert checkpoints["embedded:llava"].model.dtype == torch.float32
    onevision = checkpoints["embedded:onevision"].model.config.text_config
    assert onevision.num_key_value_heads < onevision.num_attention_heads and onevision.num_hidden_layers >= 12
