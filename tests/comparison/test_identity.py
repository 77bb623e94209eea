"""A cell is found again only where nothing that its number depends on has changed; each of these is changed by itself."""

from __future__ import annotations

import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenzoo.bench.tasks import task
from tokenzoo.comparison.code import code_of, running_code
from tokenzoo.comparison.identity import Questions, accuracy_identity, model_facts
from tokenzoo.comparison.store import cell_key
from tokenzoo.models import files
from tokenzoo.models.checkpoint import CHECKPOINTS, load
from tokenzoo.zoo.additions import import_file
from tokenzoo.zoo.plugins import load_zoo

METHOD = """
from dataclasses import dataclass
from tokenzoo import TokenReducer
@dataclass
class Mine(TokenReducer):
    name = "mine"
    def kept(self, entered, layers):
        from {helper} import share
        return {{1: share}}
    def score(self, layer):
        return layer.visual.float()
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(CHECKPOINTS / "llava", tmp_path / "model")


def key(folder, **options):
    checkpoint = load(str(folder), **options)
    return cell_key({**accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1), "model": ""})


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_the_same_checkpoint_has_the_same_key(folder):
    before = key(folder)
    (folder / "README.md").write_text("other words")
    assert key(folder) == before


def test_one_number_of_the_weights(folder):
    before = key(folder)
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda one: weights[one].numel())
    weights[name].view(-1)[weights[name].numel() // 2 + 17] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert key(folder) != before


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
def test_each_file_beside_the_weights(folder, file):
    before = key(folder)
    if file == "tokenizer.json":
        edit_json(folder / file, swap_two_words)
    else:
        edit_json(folder / file, lambda data: data.update({"a_new_entry": 1}))
    assert key(folder) != before


def swap_two_words(data):
    words = data["model"]["vocab"]
    first, second = list(words)[10:12]
    words[first], words[second] = words[second], words[first]


def test_a_template_changed_in_memory(folder):
    checkpoint = load(str(folder))
    first = accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1)
    checkpoint.tokenizer.chat_template = f"{checkpoint.tokenizer.chat_template} "
    assert accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1) != first


def test_dtype_and_attention_and_answer_length(folder):
    before = key(folder)
    assert len({before, key(folder, dtype="bfloat16"), key(folder, attn_implementation="eager")}) == 3
    checkpoint = load(str(folder))
    first, second = (
        accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1, max_new_tokens=count) for count in (8, 9)
    )
    assert first != second


def test_a_model_made_in_memory_is_known_by_all_its_numbers(folder):
    checkpoint = load(str(folder))
    checkpoint.folder = None
    first = accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1)
    with torch.no_grad():
        checkpoint.model.lm_head.weight.view(-1)[131] += 1
    assert accuracy_identity(checkpoint, load_zoo().build("none"), "t", Questions(), 0, 1) != first


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A method in one file, with a helper module that it imports in the middle of its work, from another folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = tmp_path / "identity_helper.py"
    helper.write_text("share = 3\n")
    path = tmp_path / "plugins" / "mine.py"
    path.parent.mkdir()
    path.write_text(METHOD.format(helper="identity_helper"))
    return path, helper


def test_code_that_a_plugin_imports(plugin):
    path, helper = plugin
    method = import_file(path).Mine
    before = code_of(method)
    helper.write_text("share = 3  # a comment\n")
    assert code_of(method) == before
    helper.write_text("share = 4\n")
    assert code_of(method) != before


def test_packages_of_another_environment_are_libraries(tmp_path, monkeypatch):
    """An environment may see another one's packages: what a plugin imports of them is known by its version, and not read."""
    place = tmp_path / "site-packages"
    place.mkdir()
    (place / "large_library.py").write_text("VALUE = 1")
    (place / "small_plugin_of_it.py").write_text("import large_library\nclass Plugin: ...\n")
    monkeypatch.syspath_prepend(str(place))
    cls = importlib.import_module("small_plugin_of_it").Plugin
    before = code_of(cls)
    (place / "large_library.py").write_text("VALUE = 2")
    assert code_of(cls) == before
    (place / "small_plugin_of_it.py").write_text("import large_library\nclass Plugin: value = 1\n")
    assert code_of(cls) != before


def test_everything_in_the_package_of_a_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "identity_package"
    package.mkdir()
    (package / "__init__.py").write_text(METHOD.format(helper="identity_package.other"))
    (package / "other.py").write_text("share = 2\n")
    (package / "table.json").write_text("[1]")
    import importlib

    method = importlib.import_module("identity_package").Mine
    before = code_of(method)
    (package / "table.json").write_text("[2]")
    changed = code_of(method)
    (package / "nobody_imports_this.py").write_text("a = 1\n")
    assert len({before, changed, code_of(method)}) == 3


def test_a_built_in_method_depends_on_what_it_inherits_and_imports_but_not_on_others():
    zoo = load_zoo()
    digests = {name: code_of(zoo.method(name)) for name in ("prumerge", "prumerge_plus", "fastv", "vtw")}
    assert len(set(digests.values())) == 4


def test_tokenzoos_own_code_is_covered(tmp_path, monkeypatch):
    """What runs and scores counts; what prints does not."""
    from tokenzoo.comparison import code

    copied = shutil.copytree(code._OWN, tmp_path / "tokenzoo", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    monkeypatch.setattr(code, "_OWN", copied)
    before, seen = running_code(), set()
    for name in (
        "method/accounting.py",
        "host/run.py",
        "models/inputs.py",
        "bench/evaluate.py",
        "comparison/cells.py",
        "cost/costs.py",
    ):
        (copied / name).write_text((copied / name).read_text() + "\nAPPENDED = 1\n")
        seen.add(running_code())
    assert len(seen | {before}) == 7
    after = running_code()
    (copied / "report" / "html.py").write_text("APPENDED = 1\n")
    assert running_code() == after


def test_the_code_of_a_task(tmp_path):
    from tokenzoo.bench.tasks import task

    assert Questions([], task("reading")).digest != Questions([]).digest


def test_files_are_read_once(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"1" * 100)
    first = files.files_digest([path])
    monkeypatch.setattr(files, "_digest", lambda path: pytest.fail("a file that did not change was read again"))
    assert files.files_digest([path]) == first


@pytest.mark.parametrize("model", ["embedded:llava", "embedded:onevision"])
def test_a_model_that_was_asked_is_still_the_same(model):
    """A tokenizer remembers how its last call padded: a cell must be found again by a process that has asked nothing yet."""
    checkpoint = load(model, device="cpu")
    before = model_facts(checkpoint)
    checkpoint.inputs(list(task("attribute").questions(2, 0)))
    assert model_facts(checkpoint) == before
