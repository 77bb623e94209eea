"""The tiny models run on their inputs, plain, and every visual token of theirs matters."""

from __future__ import annotations

import pytest
import torch

from tokenzoo.errors import UserError
from tokenzoo.testing import FAMILIES, cases, take_sample, tiny_inputs, tiny_model
from tokenzoo.testing.models import VOCABULARY

LAYERS = 6


@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_runs_and_the_pixels_matter(family: str) -> None:
    model = tiny_model(family, layers=LAYERS)
    for case in cases(model):
        inputs = tiny_inputs(model, case)
        with torch.no_grad():
            logits = model(**inputs).logits
            other = {
                name: value + torch.randn_like(value) * (value != 0) if name.startswith("pixel_values") else value
                for name, value in inputs.items()
            }
            difference = (model(**other).logits - logits).abs()
        assert logits.shape == (*inputs["input_ids"].shape, VOCABULARY)
        assert difference.max() > 0.1
        assert torch.equal(tiny_inputs(model, case)["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_taken_out_of_its_batch_answers_as_in_it(family: str) -> None:
    model = tiny_model(family, layers=LAYERS)
    for case in cases(model):
        inputs = tiny_inputs(model, case)
        with torch.no_grad():
            logits = model(**inputs).logits
            for index, mask in enumerate(inputs["attention_mask"].bool()):
                alone = take_sample(inputs, case, index)
                if not any(name.startswith("pixel") and len(value) for name, value in alone.items()):
                    alone = {name: alone[name] for name in ("input_ids", "attention_mask")}
                torch.testing.assert_close(model(**alone).logits[0], logits[index, mask], atol=1e-4, rtol=0)


def test_seeds() -> None:
    weights = [tiny_model("llava", layers=2, seed=seed).lm_head.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="Did you mean 'llava-next'"):
        tiny_model("lava-next")
    with pytest.raises(UserError, match="Unknown case"):
        tiny_inputs(tiny_model("llava", layers=2), "batch")
    with pytest.raises(UserError, match="takes no videos"):
        tiny_inputs(tiny_model("llava", layers=2), "video")
