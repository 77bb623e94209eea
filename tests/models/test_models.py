"""Loading: tiny checkpoints of each family made on the fly, and one-line errors for what cannot be loaded."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from tokenzoo.bench.evaluate import predict
from tokenzoo.bench.tasks import task
from tokenzoo.bench.vocabulary import IMAGE, VIDEO, WORDS
from tokenzoo.errors import UserError
from tokenzoo.models.checkpoint import load
from tokenzoo.models.question import Question
from tokenzoo.training.export import build_tokenizer, export
from tokenzoo.training.shapes import build_llava, build_onevision

GREY = Image.new("RGB", (96, 96), (128, 128, 128))
FREE = Question("free/0/0", "what is there?", images=(GREY,), answer="nothing")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Untrained checkpoints of the two embedded shapes and the two Qwen families."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    export(build_llava(), folder / "llava")
    export(build_onevision(), folder / "onevision")
    for name, config_class, model_class in (
        ("qwen2_vl", Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        ("qwen2_5_vl", Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    ):
        save_qwen(folder / name, config_class, model_class)
    return folder


def save_qwen(folder, config_class, model_class):
    text = dict(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = dict(depth=2, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2)
    if config_class is Qwen2VLConfig:
        vision |= dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    else:
        vision |= dict(hidden_size=32, out_hidden_size=32, intermediate_size=64, fullatt_block_indexes=[1], window_size=32)
    ids = dict(image_token_id=WORDS.index(IMAGE), video_token_id=WORDS.index(VIDEO))
    config = config_class(text_config=text, vision_config=vision, **ids, vision_start_token_id=6, vision_end_token_id=12)
    model_class(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    ).save_pretrained(folder)


def visual_tokens(checkpoint, inputs):
    ids = inputs["input_ids"]
    return [int(((row == WORDS.index(IMAGE)) | (row == WORDS.index(VIDEO))).sum()) for row in ids]


@pytest.mark.parametrize(("name", "expected"), [("llava", 144), ("onevision", 300), ("qwen2_vl", 36), ("qwen2_5_vl", 36)])
def test_pictures(checkpoints, name, expected):
    checkpoint = load(str(checkpoints / name))
    questions = list(task("attribute").questions(3, seed=0))
    inputs = checkpoint.inputs(questions)
    assert visual_tokens(checkpoint, inputs) == [expected] * 3
    answers = predict(checkpoint, questions, batch_size=2)
    assert [answer.question_id for answer in answers] == [question.id for question in questions]
    assert all(answer.answer in question.choices for answer, question in zip(answers, questions, strict=True))


@pytest.mark.parametrize(("name", "expected"), [("onevision", 8 * 36 + 1), ("qwen2_vl", 4 * 36), ("qwen2_5_vl", 4 * 36)])
def test_videos(checkpoints, name, expected):
    checkpoint = load(str(checkpoints / name))
    questions = list(task("when").questions(2, seed=0))
    assert visual_tokens(checkpoint, checkpoint.inputs(questions)) == [expected] * 2
    assert len(predict(checkpoint, questions)) == 2


@pytest.mark.parametrize("name", ["llava", "onevision", "qwen2_vl"])
def test_padding_is_on_the_left_and_changes_nothing(checkpoints, name):
    checkpoint = load(str(checkpoints / name))
    short, long = Question("s", "what?", (GREY,)), Question("l", "what color is the circle in the picture?", (GREY,))
    inputs = checkpoint.inputs([short, long])
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -1].all()
    with torch.no_grad():
        batched = checkpoint.model(**inputs, logits_to_keep=1).logits[0, -1]
        alone = checkpoint.model(**checkpoint.inputs([short]), logits_to_keep=1).logits[0, -1]
    assert torch.allclose(batched, alone, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "onevision", "qwen2_vl"])
def test_several_pictures_text_alone_and_free_form(checkpoints, name):
    checkpoint = load(str(checkpoints / name))
    two = Question("two", "what is different?", (GREY, GREY))
    answers = predict(checkpoint, [FREE, two, Question("text", "what?")], batch_size=4)
    assert [answer.question_id for answer in answers] == ["free/0/0", "two", "text"]


def test_a_frame_of_a_qwen_video_is_read_as_a_picture_is(checkpoints):
    """A video of two equal frames has the patches of the picture, which is written twice in time."""
    checkpoint = load(str(checkpoints / "qwen2_vl"))
    picture = next(task("attribute").questions(1, seed=0)).images[0]
    still = checkpoint.inputs([Question("p", "what?", (picture,))])["pixel_values"]
    moving = checkpoint.inputs([Question("v", "what?", video=(picture, picture))])["pixel_values_videos"]
    assert torch.equal(still, moving)


def test_weights_are_bfloat16_on_disk_and_float32_on_the_cpu(checkpoints):
    config = json.loads((checkpoints / "llava" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert load(str(checkpoints / "llava"), device="cpu").model.dtype == torch.float32
    assert load(str(checkpoints / "llava"), dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("embedded:lava", "Unknown embedded model 'embedded:lava'. Did you mean 'embedded:llava'?"),
        ("./nowhere", "No model directory './nowhere'"),
        ("nowhere", "No model directory 'nowhere'"),
    ],
)
def test_models_that_do_not_exist(model, message):
    with pytest.raises(UserError) as error:
        load(model)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_directory_without_a_config(tmp_path):
    with pytest.raises(UserError, match=r"No config\.json in"):
        load(str(tmp_path))


def test_the_hub_out_of_reach(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nlong story")

    monkeypatch.setattr("tokenzoo.models.checkpoint.AutoConfig.from_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"Cannot reach the Hub for 'org/name': We couldn't connect.*Pass a local directory"
    ) as error:
        load("org/name")
    assert "\n" not in str(error.value)
