"""`tokenzoo run` and `compare` on a checkpoint folder of every family: processor, tokenizer and template as on the Hub.

The weights are random: what is shown is that folders load, that the inputs are the processor's own, and that methods act.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hub_checkpoints import LAYERS, WITH_VIDEO_HALF, save
from PIL import Image

import tokenzoo
from tokenzoo import Trace, UserError, cli
from tokenzoo.models.checkpoint import load
from tokenzoo.models.inputs import metadata
from tokenzoo.models.media import read_video, shown_at
from tokenzoo.models.question import Question
from tokenzoo.testing.models import FAMILIES, tiny_model

ASKED = "what color is the circle ?"
#: Acts before the LLM and inside it.
METHOD = "random:retention=0.5+fastv:K=2"
#: Families that are asked about a video.
VIDEOS = ("llava-onevision", "llava-next-video", "video-llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "qwen3.5",
          "internvl", "smolvlm", "gemma4")  # fmt: skip
FRAMES = 6


def with_extras(families):
    """Parameters; those whose processor needs torchvision belong to the environment of the extra 'models'."""
    return [pytest.param(name, marks=pytest.mark.models if name in WITH_VIDEO_HALF else ()) for name in families]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family's checkpoint, written when it is first asked for."""
    root = tmp_path_factory.mktemp("hub")
    return cache(lambda family: save(family, root / family))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three seconds, eight frames in each."""
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    pixels = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 96, 64
        for small in pixels:
            frame = np.ascontiguousarray(np.asarray(Image.fromarray(small).resize((96, 64))))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def run(folder: Path, trace: Path, *options: object) -> Trace:
    arguments = ["run", "--model", folder, "--max-new-tokens", 2, "--device", "cpu", "--trace", trace, *options, ASKED]
    assert cli.run([str(argument) for argument in arguments]) == 0
    return Trace.load(trace)


@pytest.mark.parametrize("family", with_extras(FAMILIES))
def test_a_folder_is_loaded_whole(folder, family):
    """The same weights as were written, under the names that save_pretrained gives them."""
    loaded = load(str(folder(family)), device="cpu")
    written = tiny_model(family, layers=LAYERS).state_dict()
    assert loaded.processor is not None and loaded.tokenizer.chat_template
    assert written.keys() == loaded.model.state_dict().keys()
    assert all(torch.equal(value, written[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("family", with_extras(FAMILIES))
def test_inputs_are_what_the_processors_own_chat_makes(folder, family, picture):
    checkpoint = load(str(folder(family)), device="cpu")
    shown = Image.open(picture).convert("RGB")
    question = Question("one", ASKED, images=(shown, shown))
    made = checkpoint.inputs([question])
    content = [{"type": "image", "image": shown}] * 2 + [{"type": "text", "text": ASKED}]
    own = checkpoint.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    takes = {name: value for name, value in own.items() if name != "token_type_ids" or family == "gemma3"}
    assert made.keys() == takes.keys()
    assert all(torch.equal(made[name], value) for name, value in takes.items())
    with torch.no_grad():
        expected, logits = (checkpoint.model(**inputs, logits_to_keep=1).logits for inputs in (takes, made))
    assert torch.equal(expected, logits)


@pytest.mark.parametrize("family", with_extras(FAMILIES))
def test_run_on_a_picture(folder, family, picture, tmp_path, capsys):
    pictures = ("--image", picture, "--image", picture)
    whole = run(folder(family), tmp_path / "none.json", *pictures).visual_tokens()
    capsys.readouterr()
    visual = run(folder(family), tmp_path / "trace.json", *pictures, "--method", METHOD).visual_tokens()
    assert whole[0] == whole[-1] > visual[0] > visual[-1] > 0
    assert f"of {whole[0]}" in capsys.readouterr().out


@pytest.mark.models
@pytest.mark.parametrize("family", VIDEOS)
def test_run_on_a_video(folder, family, video, tmp_path):
    """Every frame that was taken from the file reaches the model: processors that choose frames are told not to."""
    counts = [
        run(folder(family), tmp_path / "none.json", "--video", video, "--frames", frames).visual_tokens()[0]
        for frames in (FRAMES, 2 * FRAMES)
    ]
    structural = 1 if family == "llava-onevision" else 0
    if not family.startswith("qwen"):  # they make larger pictures of fewer frames
        assert counts[1] - structural == 2 * (counts[0] - structural)
    asked = ("--video", video, "--frames", FRAMES, "--method", METHOD)
    visual = run(folder(family), tmp_path / "trace.json", *asked).visual_tokens()
    assert counts[0] > visual[0] > visual[-1] > 0


@pytest.mark.parametrize("family", with_extras(name for name in FAMILIES if name != "qwen3-vl-mha"))
def test_compare_on_a_folder_of_questions(folder, family, picture, tmp_path, capsys):
    (tmp_path / "picture.png").write_bytes(picture.read_bytes())
    rows = [{"image": "picture.png", "question": ASKED, "answer": "red", "choices": ["red", "blue"]}] * 2
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "compare", "--model", folder(family), "--tasks", tmp_path, "--methods", "fastv:K=2", "--as-published", "--no-timing",
        "--device", "cpu", "--store", tmp_path / "store.sqlite", "--format", "json",
    ]  # fmt: skip
    assert cli.run([str(argument) for argument in arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["sections"][0]["rows"]
    tokens = {row["label"]: row["visual_tokens"] for row in rows}
    assert 0 < tokens["fastv:K=2"] < tokens["none"]


def test_a_process_of_its_own(folder, picture):
    command = [sys.executable, "-m", "tokenzoo", "run", "--model", folder("gemma3"), "--method", METHOD, "--image", picture]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command), "--max-new-tokens", "2", ASKED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "mean" in done.stdout


def test_gemmas_tokens_of_a_picture_see_each_other(folder, picture):
    """Its model learns from token_type_ids where pictures are; without them they would be read as text."""
    checkpoint = load(str(folder("gemma3")), device="cpu")
    inputs = checkpoint.inputs([Question("one", ASKED, images=(Image.open(picture).convert("RGB"),))])
    text = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    with torch.no_grad():
        seen, unseen = (checkpoint.model(**call, logits_to_keep=1).logits for call in (inputs, text))
    assert (seen - unseen).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma3", "idefics3"])
def test_a_prompt_begins_once(folder, family):
    checkpoint = load(str(folder(family)), device="cpu")
    ids = checkpoint.inputs([Question("text", ASKED)])["input_ids"][0]
    assert ids.tolist().count(checkpoint.tokenizer.bos_token_id) == 1


@pytest.mark.models
def test_timestamps_are_those_of_the_file(folder, video):
    checkpoint = load(str(folder("qwen3-vl")), device="cpu")
    frames = read_video(video, 4)
    assert shown_at(frames) == pytest.approx([0, 1, 15 / 8, 23 / 8], abs=0.07)
    made = checkpoint.inputs([Question("v", ASKED, video=frames)])
    words = checkpoint.tokenizer.decode(made["input_ids"][0]).replace(" ", "")
    first, second, third, last = shown_at(frames)
    assert [f"{sum(pair) / 2:.1f}" in words for pair in ((first, second), (third, last))] == [True, True], words


def test_frames_that_do_not_tell_when_are_taken_at_the_models_rate():
    frames = [Image.new("RGB", (8, 8))] * 4
    assert metadata(frames, 2.0) == {"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3], "duration": 2.0}


def test_frames_that_tell_when_are_told_in_thousandths_of_a_second():
    frames = [Image.new("RGB", (8, 8)) for _ in range(5)]
    for index, frame in enumerate(frames):
        frame.info["tokenzoo_seconds"] = 3.0 + 0.5 * index
    told = metadata(frames, 2.0)
    assert told["frames_indices"] == [3000, 3500, 4000, 4500, 5000]
    assert len(frames) / told["total_num_frames"] * told["fps"] == 2.0  # what transformers takes for frames a second


@pytest.mark.parametrize(
    ("family", "question", "message"),
    [
        ("gemma3", "is <start_of_image> a word ?", "contains '<start_of_image>'"),
        pytest.param("internvl", "is <video> a word ?", "contains '<video>'", marks=pytest.mark.models),
    ],
)
def test_words_that_stand_for_pictures_are_refused(folder, family, question, message):
    with pytest.raises(UserError, match=message):
        load(str(folder(family)), device="cpu").inputs([Question("one", question)])


@pytest.mark.models
def test_pictures_beside_a_video_where_the_processor_mixes_them_up(folder, picture, video):
    both = Question("both", ASKED, images=(Image.open(picture).convert("RGB"),), video=read_video(video, 4))
    with pytest.raises(UserError, match="one or the other"):
        load(str(folder("smolvlm")), device="cpu").inputs([both])


@pytest.mark.models
def test_videos_that_do_not_fit_one_batch_are_one_line(folder, video):
    asked = [Question(str(frames), ASKED, video=read_video(video, frames)) for frames in (2, 4)]
    with pytest.raises(UserError, match="in one batch") as error:
        load(str(folder("llava-next-video")), device="cpu").inputs(asked)
    assert "\n" not in str(error.value)


@pytest.mark.models
def test_video_llavas_pictures_are_seen_under_its_processors_name(folder, picture):
    """Its processor calls them pixel_values_images."""
    checkpoint = load(str(folder("video-llava")), device="cpu")
    inputs = checkpoint.inputs([Question("one", ASKED, images=(Image.open(picture).convert("RGB"),))])
    with torch.no_grad(), tokenzoo.apply(checkpoint.model, "fastv:K=2") as at_work:
        checkpoint.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert at_work.trace.visual_tokens() == [16, 16, 8, 8, 8, 8]
