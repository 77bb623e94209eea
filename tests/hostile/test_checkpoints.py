"""Broken checkpoints: one line that names the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenzoo import UserError
from tokenzoo.models.checkpoint import CHECKPOINTS, load

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(CHECKPOINTS / "llava", tmp_path / "model")


def edit(name, **changes):
    def change(folder):
        data = json.loads((folder / name).read_text())
        data.update(changes)
        (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(share):
    def change(folder):
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])

    return change


def weights(change):
    def changed(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def without_a_layer(tensors):
    for name in [name for name in tensors if ".layers.3." in name]:
        del tensors[name]


def of_another_shape(tensors):
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name] = torch.zeros(7, 5)


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def sharded(content):
    def change(folder):
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(content)

    return change


NOT_JSON = [b"", b"{", b"[1", b"\xff\xfe\x00", b"nul", b"{'a': 1}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
OTHER_JSON = [b"[]", b"3", b"null", b'"text"']
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
CASES = [
    *[(f"{name} holds {content[:9]!r}", write(name, content), name) for name in JSON_FILES for content in NOT_JSON + OTHER_JSON],
    *[(f"weights cut to {share}", truncate(share), WEIGHTS) for share in (0, 1e-6, 0.01, 0.5, 0.99)],
    *[(f"weights are {content[:4]!r}", write(WEIGHTS, content), WEIGHTS) for content in (b"text", b"\0" * 100, b"\xff" * 100)],
    ("no config", remove("config.json"), "config.json"),
    ("no weights", remove(WEIGHTS), WEIGHTS),
    ("a pickle", pickled, "pytorch_model.bin"),
    ("no model type", edit("config.json", model_type=...), "model_type"),
    ("a model type that is a number", edit("config.json", model_type=3), "model_type"),
    ("an unknown model type", edit("config.json", model_type="nobody"), "nobody"),
    ("a model without pictures", edit("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"]), "model"),
    ("negative layers", edit("config.json", text_config={"model_type": "llama", "num_hidden_layers": -1}), "model"),
    ("layers as text", edit("config.json", text_config={"model_type": "llama", "num_hidden_layers": "many"}), "model"),
    ("text config is a list", edit("config.json", text_config=[1]), "model"),
    ("a missing layer", weights(without_a_layer), "--allow-missing"),
    ("an unexpected weight", weights(lambda tensors: tensors.update(surplus=torch.zeros(3))), "surplus"),
    ("a wrong shape", weights(of_another_shape), "shape"),
    ("shards that are missing", sharded('{"weight_map": {"a": "model-1.safetensors"}}'), "model-1.safetensors"),
    ("an index without a map", sharded('{"metadata": {}}'), "weight_map"),
    ("an index of numbers", sharded('{"weight_map": {"a": 3}}'), "weight_map"),
    ("no tokenizer", lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "model"),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_broken_folder_is_one_line(folder, change, says, capfd):
    change(folder)
    with pytest.raises(UserError) as error:
        load(str(folder))
    said = str(error.value)
    assert says in said and "\n" not in said and len(said) < 500
    assert capfd.readouterr().err == ""


def test_missing_layers_are_random_only_where_that_was_asked_for(folder):
    weights(without_a_layer)(folder)
    assert load(str(folder), allow_missing=True).model is not None


@pytest.mark.parametrize("name", ["nope", "float8_e4m3fn", "", "FLOAT32", "int8", "float32 ", "torch.float32", "9" * 5000])
def test_dtypes(name):
    if name:
        with pytest.raises(UserError, match="Unknown dtype"):
            load("embedded:llava", dtype=name)


@pytest.mark.parametrize("device", ["nope", "cuda:99", "meta", "gpu", "cpu:x", "9" * 50, "tpu", "-1"])
def test_devices(device):
    with pytest.raises(UserError, match=r"[Dd]evice") as error:
        load("embedded:llava", device=device)
    assert "\n" not in str(error.value)


NAMES = [
    "",
    ".",
    "./nowhere",
    "/dev/null",
    "embedded:",
    "embedded:foo",
    "a/b/c",
    "~nobody/x",
    "../..",
    "no spaces/ here/",
    "a\0b/c",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    with pytest.raises(UserError) as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ nothing.at.all }}", "{{ 1/0 }}", "{{ raise_exception('no') }}", "USER: no picture", "", "{{ messages }}"],
)
def test_templates(folder, template):
    from PIL import Image

    from tokenzoo.models.question import Question

    checkpoint = load(str(folder))
    for part in (checkpoint.processor, checkpoint.tokenizer):
        part.chat_template = template
    question = Question("q", "what color is the circle?", (Image.new("RGB", (96, 96)),))
    if template:
        with pytest.raises(UserError, match="template") as error:
            checkpoint.inputs([question])
        assert "\n" not in str(error.value)
    else:
        assert len(checkpoint.inputs([question])["input_ids"][0])  # no template at all: LLaVA's plain form


@pytest.mark.parametrize("prompt", ["what is <image>?", "<image>", "<image><image> and"])
def test_a_word_that_stands_for_a_picture(prompt):
    from PIL import Image

    from tokenzoo.models.question import Question

    with pytest.raises(UserError, match="stands for a picture"):
        load("embedded:llava").inputs([Question("q", prompt, (Image.new("RGB", (96, 96)),))])
