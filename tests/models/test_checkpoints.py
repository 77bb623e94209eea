"""The checkpoints that ship: small, loaded as a user's model is, and as able as their cards say."""

import pytest
import torch

from tokenzoo.bench.evaluate import blank, predict
from tokenzoo.bench.tasks import task
from tokenzoo.models.checkpoint import CHECKPOINTS, EMBEDDED, load

QUESTIONS = {"image": 24, "video": 12}
#: well below the accuracies of 500 questions in docs/models
FLOORS = {
    "embedded:llava": {"attribute": 0.9, "relation": 0.65, "existence": 0.85, "counting": 0.6, "reading": 0.85},
    "embedded:onevision": {"attribute": 0.9, "order": 0.85, "when": 0.7, "change": 0.9},
}
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
