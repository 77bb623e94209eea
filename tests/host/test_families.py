"""What differs between model families: positions after a video, sources that are left alone, what has no adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError
from tokenzoo.testing.case import Case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import IMAGE, TEXT, VIDEO, VISION_END, VISION_START, tiny_model
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 6


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl"])
@pytest.mark.parametrize("method", ["random:retention=0.5", "fastv:K=2"])
def test_a_video_longer_than_it_is_wide(family: str, method: str) -> None:
    """M-RoPE's time axis runs ahead of the text that follows; generated tokens go on from the text on every axis."""
    frames, text = 24, list(TEXT[:3])
    ids = torch.tensor([[*text, VISION_START, *[VIDEO] * (frames * 4), VISION_END, *text]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(frames * 16, 96, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[frames, 4, 4]]),
    }
    case = Case(tiny_model(family, layers=LAYERS), inputs, "a long video")
    report = check_case(case, load_zoo().build(method).reducers)
    assert [str(finding) for finding in report.findings] == [] and report.dropped


@dataclass
class CutsBigPictures(TokenReducer):
    """Before the projector, halves pictures of more than three views and leaves the others alone."""

    name: ClassVar[str] = "cuts-big-pictures"

    def early(self, source, architecture):
        return True

    def left(self, views, source, architecture):
        return sum(views) if len(views) <= 3 else (sum(views) + 1) // 2

    def reduce(self, tokens):
        return torch.arange(0, len(tokens.features), 2)


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
def test_a_picture_left_alone_beside_a_reduced_one(family: str) -> None:
    """It enters the LLM as the model packs it, newlines included, not as raw encoder tokens."""
    model = tiny_model(family, layers=LAYERS)
    case = Case(model, tiny_inputs(model, "left"), family)
    report = check_case(case, [CutsBigPictures()])
    assert [str(finding) for finding in report.findings] == [] and report.dropped
    left = [s.sources[0].assignment is None for s in report.outcome.trace.samples]
    assert True in left and False in left
    for index, alone in enumerate(left):
        if alone:
            source = report.outcome.trace.samples[index].sources[0]
            assert len(source.rows) == source.source.tokens


def test_kept_positions_with_gaps_are_no_packed_sequences() -> None:
    """Without mask and cache transformers looks for borders of packed sequences in the positions."""
    model = tiny_model("llava", layers=LAYERS)
    inputs = tiny_inputs(model, "single")
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad(), tokenzoo.apply(model, "random:retention=0.5,position=keep"):
        expected = model(**inputs).logits
        torch.testing.assert_close(model(**bare, use_cache=False).logits, expected)


@dataclass
class Remembers(TokenReducer):
    """Writes to memory before the projector, reads it inside."""

    name: ClassVar[str] = "remembers"

    def early(self, source, architecture):
        return True

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        tokens.memory["early"] = [*tokens.memory.get("early", []), len(tokens.features)]
        return torch.arange(0, len(tokens.features), 2)

    def kept(self, entered, layers):
        return {0: None}

    def pick(self, layer, count):
        assert layer.source_memories == [{"early": [36]}]
        return torch.arange(len(layer.visual))


def test_memory_goes_from_hook_to_hook_and_no_further() -> None:
    model = tiny_model("llava", layers=LAYERS)
    with tokenzoo.apply(model, Remembers()) as run, torch.no_grad():
        for _ in range(2):
            model.generate(**tiny_inputs(model, "left"), num_beams=2, max_new_tokens=2, do_sample=False)
    assert run.trace.visual_tokens() == [18] * LAYERS


def test_what_only_the_prefill_needs_is_let_go() -> None:
    model = tiny_model("llava", layers=LAYERS)
    with tokenzoo.apply(model, "fastv:K=1+vtw:K=3") as run, torch.no_grad():
        model(**tiny_inputs(model, "left"))
    assert len(run.prefill.stages) == 3
    assert not any(stage.masks or stage.position_embeddings for stage in run.prefill.stages)


def test_a_vision_tower_without_adapter_is_named() -> None:
    vision = PixtralVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)).eval()
    with pytest.raises(UnsupportedError, match="PixtralVisionModel"), tokenzoo.apply(model, "fastv"):
        pass


def test_mistrals_window_is_refused() -> None:
    from transformers import MistralConfig, MistralModel

    sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=2)
    embeddings = torch.randn(1, 8, 16)
    windowed, free = (MistralModel(MistralConfig(**sizes, sliding_window=window)).eval() for window in (4096, None))
    with tokenzoo.apply(windowed, "fastv:K=1", visual=[(1, 5)]), pytest.raises(UnsupportedError, match="sliding_window=None"):
        windowed(inputs_embeds=embeddings)
    with tokenzoo.apply(free, "fastv:K=1", visual=[(1, 5)]) as run, torch.no_grad():
        free(inputs_embeds=embeddings)
    assert run.trace.visual_tokens() == [4, 2, 2, 2]
