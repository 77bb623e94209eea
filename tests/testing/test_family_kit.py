"""A family written from docs/model-families.md alone, loaded as a user's plugin file, passes the kit with every method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration, LlamaConfig, SiglipVisionConfig

from tokenzoo import application
from tokenzoo.application import family_of
from tokenzoo.host.adapter import AdapterError
from tokenzoo.host.families.llava import Llava
from tokenzoo.testing.families import check_attention, check_family
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import tiny_model
from tokenzoo.zoo import plugins
from tokenzoo.zoo.plugins import load_zoo

PAGE = Path(__file__).parents[2] / "docs" / "model-families.md"
IMAGE, TOKENS = 90, 36
METHODS = load_zoo((), ()).names()
#: Every third method in the ordinary selection.
SOME = [pytest.param(name, marks=() if number % 3 == 0 else pytest.mark.matrix) for number, name in enumerate(METHODS)]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """The documentation's adapter as a plugin file."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class DeepseekVL" in block]
    path = tmp_path_factory.mktemp("plugin") / "deepseek_vl.py"
    path.write_text(code)
    plugins.configure([path])
    yield
    plugins.configure()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**sizes, num_hidden_layers=4, image_size=48, patch_size=8)
    text = LlamaConfig(**sizes, num_hidden_layers=12, num_key_value_heads=1, vocab_size=96, initializer_range=0.12)
    config = DeepseekVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
    made = DeepseekVLForConditionalGeneration(config).eval().requires_grad_(False)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


def batch(pictures: list[int]) -> dict[str, torch.Tensor]:
    """One sample with each of these numbers of pictures, texts of unequal length, padded left."""
    rows = [[1, *range(3, 6 + n), *([7, *[IMAGE] * TOKENS] * count), *range(20, 24)] for n, count in enumerate(pictures)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    pixels = torch.randn(sum(pictures), 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": pixels}


BATCHES = {"one picture": batch([1]), "padded": batch([1, 1, 1]), "several and none": batch([2, 0, 1])}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("method", SOME)
def test_a_family_from_the_documentation(model: Any, method: str, backend: str) -> None:
    model.set_attn_implementation(backend)
    assert family_of(model).name == "deepseek-vl"
    assert [str(finding) for finding in check_family(model, BATCHES, [method])] == []


class SwappedProjections(Llava):
    """Its modules have the right shape."""

    def decoder_projections(self, layer):
        return layer.self_attn.q_proj, layer.self_attn.v_proj


def test_modules_of_the_right_shape_are_found_by_the_attention_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_model("llava", layers=4)
    inputs = tiny_inputs(tiny, "left")
    check_attention(tiny, inputs)
    monkeypatch.setattr(application, "BUILT_IN", (SwappedProjections(), *application.BUILT_IN))
    with pytest.raises(AdapterError, match=r"SwappedProjections.*another attention in layer 0"):
        check_attention(tiny, inputs)


@pytest.mark.parametrize("family", ["qwen3-vl", "gemma3", "internvl"])
def test_built_in_adapters_tell_the_models_attention(family: str) -> None:
    tiny = tiny_model(family, layers=4)
    check_attention(tiny, tiny_inputs(tiny, "images"))
