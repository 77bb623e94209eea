"""A user's own folder: what works, and the line that every mistake is answered with."""

import json

import numpy as np
import pytest
from PIL import Image

from tokenzoo.bench.local import LocalTask
from tokenzoo.comparison.identity import Questions
from tokenzoo.errors import UserError
from tokenzoo.models.media import read_image, read_video


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    frames = tmp_path / "clip"
    frames.mkdir()
    for index in range(12):
        Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(frames / f"{index:03}.png")
    return tmp_path


def write(folder, *rows):
    (folder / "questions.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder


GOOD = {"image": "a.png", "question": "what color?", "answer": "red", "choices": ["red", "blue"]}


def test_pictures_and_folders_of_frames(folder):
    rows = (GOOD, {"video": "clip", "question": "what happens?", "answer": "it reddens"})
    first, second = LocalTask(write(folder, *rows), frames=4).questions(10)
    assert first.images[0].size == (20, 10) and first.choices == ("red", "blue") and first.answer == "red"
    assert [frame.getpixel((0, 0))[0] for frame in second.video] == [0, 80, 140, 220] and second.choices == ()


def test_chance_metric_and_order(folder):
    task = LocalTask(write(folder, *[dict(GOOD, question=f"q{index}") for index in range(8)]))
    assert task.chance == 0.5 and task.metric == "accuracy" and task.modality == "image"
    prompts = [question.prompt for question in task.questions(8)]
    assert prompts == [f"q{index}" for index in range(8)]
    shuffled = [question.prompt for question in task.questions(8, seed=1)]
    assert shuffled != prompts and sorted(shuffled) == prompts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1: not JSON"),
        ([GOOD, "[1]"], "line 2: expected a JSON object, got list"),
        ([{"image": "a.png", "question": "q"}], "line 1: needs 'answer'"),
        ([{"question": "q", "answer": "a"}], "needs exactly one of 'image' and 'video'"),
        ([dict(GOOD, choices=["green"])], "'choices' must be a list that contains the answer 'red'"),
        ([""], "is empty"),
    ],
)
def test_malformed_lines(folder, rows, message):
    with pytest.raises(UserError) as error:
        LocalTask(write(folder, *rows))
    assert message in str(error.value) and "\n" not in str(error.value) and "questions.jsonl" in str(error.value)


def test_no_questions_file(tmp_path):
    with pytest.raises(UserError, match=r"No questions\.jsonl in"):
        LocalTask(tmp_path)


def test_missing_and_unreadable_files_name_the_line(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.mp4").write_bytes(b"no video")
    rows = [dict(GOOD, image="none.png"), dict(GOOD, image="broken.png")]
    rows += [{"video": name, "question": "q", "answer": "a"} for name in ("none.mp4", "broken.mp4")]
    for number, message in enumerate(["No image file", "Cannot read image", "No video file", "Cannot read video"]):
        with pytest.raises(UserError, match=f"questions.jsonl line 1: {message}"):
            Questions(LocalTask(write(folder, rows[number])).questions(1))  # reads every picture


def test_video_files_are_sampled_from_first_to_last(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            picture = np.full((48, 64, 3), 12 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = read_video(path, 5)
    brightness = [frame.getpixel((30, 20))[0] for frame in frames]
    assert len(frames) == 5 and frames[0].size == (64, 48)
    assert brightness[0] < 20 and brightness[-1] > 210 and brightness == sorted(brightness)
    assert len(read_video(path, 100)) == 20


def test_empty_folder_of_frames(tmp_path):
    with pytest.raises(UserError, match="No pictures in the folder"):
        read_video(tmp_path)


def test_missing_image(tmp_path):
    with pytest.raises(UserError, match="No image file"):
        read_image(tmp_path / "a.png")
