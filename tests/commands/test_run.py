"""`tokenzoo run` as a user runs it: a process of its own, a checkpoint directory, a real photograph, a real video."""

from __future__ import annotations

import os
import subprocess
import sys

import av
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from tokenzoo import Trace


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints as save_pretrained writes them, random weights, made here."""
    from tokenzoo.training.export import export
    from tokenzoo.training.shapes import build_llava, build_onevision

    folder = tmp_path_factory.mktemp("checkpoints")
    export(build_llava(), folder / "llava")
    export(build_onevision(), folder / "onevision")
    return folder


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """The photograph of Grace Hopper that matplotlib ships (public domain)."""
    path = tmp_path_factory.mktemp("pictures") / "photograph.jpg"
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        Image.open(file).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory, photograph):
    """An mp4 that pans over the photograph."""
    path = tmp_path_factory.mktemp("videos") / "pan.mp4"
    picture = np.asarray(Image.open(photograph).resize((192, 192)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 96
        for shift in range(0, 96, 4):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[shift : shift + 96, :96]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tokenzoo(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tokenzoo", "run", *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def test_an_image(checkpoints, photograph, tmp_path):
    trace_file = tmp_path / "trace.json"
    done = tokenzoo(
        "--model", checkpoints / "llava", "--method", "aim", "--image", photograph, "--max-new-tokens", 3,
        "--trace", trace_file, "what color is the circle ?",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace = Trace.load(trace_file)
    visual = trace.visual_tokens()
    assert visual[0] == 36 and visual[-1] < 36
    table = done.stdout.partition("all tokens\n")[2]  # the answer, which may be a number, stands above
    rows = [line.split() for line in table.splitlines()[:-1]]
    assert [int(row[1]) for row in rows] == list(dict.fromkeys(visual))
    assert f"{np.mean(visual):.1f}, {np.mean(visual) / 144:.1%} of 144" in done.stdout


def test_a_video(checkpoints, video):
    done = tokenzoo(
        "--model", checkpoints / "onevision", "--method", "fastv:K=2,R=0.5", "--video", video, "--max-new-tokens", 2,
        "what happens ?",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["0-1", "289"] in [row[:2] for row in rows]
    assert any(row[:2] and row[0].startswith("2-") and row[1] == "144" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.png"], "No image file 'missing.png'"),
        ([], "Nothing to look at"),
        (["--method", "fastvv", "--image", "missing.png"], "Did you mean 'fastv'?"),
        (["--method", "fastv:Q=3", "--image", "missing.png"], "Unknown parameter of 'fastv' 'Q'"),
        (["--method", "fastv:R=7", "--image", "missing.png"], "Parameter 'R' of 'fastv' cannot be 7"),
    ],
)
def test_wrong_use_is_one_line(arguments, message):
    done = tokenzoo(*arguments, "what is this ?")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unreachable_hub_is_one_line(photograph):
    done = tokenzoo("--model", "llava-hf/llava-1.5-7b-hf", "--image", photograph, "what is this ?")
    assert done.returncode == 2
    assert "Cannot reach the Hub for 'llava-hf/llava-1.5-7b-hf'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_hub_that_does_not_answer_is_tried_once(photograph, tmp_path):
    """Each file was once tried six times: 35 seconds and 12 lines."""
    variables = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    variables |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "tokenzoo", "run", "--model", "llava-hf/llava-1.5-7b-hf", "--image", photograph, "what?"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "Cannot reach the Hub for 'llava-hf/llava-1.5-7b-hf'" in done.stderr


def test_an_unwritable_trace_is_one_line(checkpoints, photograph, tmp_path):
    done = tokenzoo(
        "--model", checkpoints / "llava", "--image", photograph, "--max-new-tokens", 1,
        "--trace", tmp_path / "missing" / "trace.json", "what is this ?",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: Cannot write")


@pytest.mark.parametrize("also", [True, False])
def test_a_video_is_no_question_for_a_model_of_pictures(checkpoints, photograph, video, also):
    pictures = ["--image", photograph] if also else []
    done = tokenzoo("--model", checkpoints / "llava", *pictures, "--video", video, "what happens ?")
    assert done.returncode == 2 and done.stdout == ""
    assert "is about a video, which" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_embedded_model_says_what_it_knows(photograph):
    done = tokenzoo("--image", photograph, "who is this ?")
    assert done.returncode == 0
    assert done.stderr.startswith("Note: embedded:llava knows only drawn scenes") and done.stderr.count("\n") == 1
