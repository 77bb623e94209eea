"""A user's own data with everything wrong that a file can have: one line that names the file and the line."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from PIL import Image

from tokenzoo import UserError
from tokenzoo.bench.local import LocalTask
from tokenzoo.comparison.identity import Questions
from tokenzoo.models.media import read_image, read_video

GOOD = {"image": "a.png", "question": "what color?", "answer": "red", "choices": ["red", "blue"]}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    return tmp_path


def changed(**values):
    return json.dumps({name: value for name, value in {**GOOD, **values}.items() if value is not ...})


VALUES = [
    *[{"image": value} for value in (5, None, [], [5], [None], "", [""], {}, True, 1.5, ["a.png", 3], [["a.png"]], "a\0.png")],
    *[{"image": value} for value in ("none.png", ".", "..", "/", "/dev/null", "a.png/b", "x" * 5000, ["a.png", "none.png"])],
    *[{"image": ..., "video": value} for value in (5, None, [], "", {}, True, ["clip"], "none.mp4", "clip\0", "/dev/null")],
    *[{"answer": value} for value in (None, "", " ", [], {}, True, ["red"], "green", 7, "!!", float("nan"))],
    *[{"question": value} for value in (None, "", " ", 5, [], {}, True, ["what?"])],
    *[{"choices": value} for value in ("red", 5, {}, True, ["blue"], ["red", "red"], ["red", "Red."], ["red", None], [["red"]])],
    *[{"choices": value} for value in (["red", ""], ["red", {}], [True, False], ["red", "the red"])],
    {"image": ...}, {"question": ...}, {"answer": ...}, {"video": "clip"},
]  # fmt: skip
LINES = ["{", "[1]", "3", "null", '"text"', "{}", "[" * 100_000, '{"a": ' * 100_000, '{"answer": ' + "9" * 5000 + "}", "not json",
         "{'image': 'a.png'}", '{"image": "a.png",}', "\ufffe", "NaN"]  # fmt: skip
BYTES = [b"", b"\n\n", b"\xff\xfe", b"\x80abc", b"\0", b"PK\x03\x04", "ä".encode("latin-1")]


def refused(folder):
    with pytest.raises(UserError) as error:
        Questions(LocalTask(folder).questions(10))
    said = str(error.value)
    assert "questions.jsonl" in said and "\n" not in said and len(said) < 6000
    return said


@pytest.mark.parametrize("values", VALUES, ids=lambda value: str(value)[:40])
def test_values(folder, values):
    (folder / "questions.jsonl").write_text(f"{changed()}\n{changed(**values)}\n")
    assert "line 2" in refused(folder)


@pytest.mark.parametrize("line", LINES, ids=lambda value: value[:12])
def test_lines(folder, line):
    (folder / "questions.jsonl").write_text(f"{changed()}\n{line}\n", encoding="utf-8")
    assert "line 2" in refused(folder)


@pytest.mark.parametrize("content", BYTES)
def test_files(folder, content):
    (folder / "questions.jsonl").write_bytes(content)
    refused(folder)


def test_a_byte_order_mark_and_letters_as_answers_are_right(folder):
    lines = changed(answer="A", choices=["A", "B"]) + "\n" + changed(answer=3, choices=[2, 3])
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8-sig")
    assert [question.answer for question in LocalTask(folder).questions(9)] == ["A", "3"]


def bomb(path):
    """A PNG of a kilobyte that says it has 40,000 × 40,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9000)) + chunk(b"IEND", b""))


def test_a_decompression_bomb(tmp_path):
    bomb(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="Cannot read image"):
        read_image(tmp_path / "bomb.png")


PICTURES = [b"", b"x", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"BM" + b"\0" * 60, b"RIFF0000WEBPVP8 ", b"<svg/>",
            b"II*\0" + b"\xff" * 40, b"MM\0*" + b"\xff" * 40, b"P6 1 1 255", b"%PDF-1.4", b"\0" * 4096]  # fmt: skip


@pytest.mark.parametrize("content", PICTURES)
@pytest.mark.parametrize("read", [read_image, read_video])
def test_pictures_and_videos_of_bytes(tmp_path, content, read):
    path = tmp_path / ("a.png" if read is read_image else "a.mp4")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Cannot read|No frames") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture(tmp_path, share):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="Cannot read image"):
        read_image(path)


def test_a_folder_of_frames_with_one_broken(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="Cannot read image"):
        read_video(tmp_path)
