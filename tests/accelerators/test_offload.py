"""Models that accelerate spreads over the CPU and the disk: methods keep the same tokens and give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import tokenzoo
from tokenzoo import UnsupportedError, UserError, cli
from tokenzoo.application import family_of
from tokenzoo.testing.inputs import tiny_inputs, words
from tokenzoo.testing.models import FAMILIES, tiny_model
from tokenzoo.zoo.plugins import load_zoo

pytestmark = pytest.mark.models

LAYERS = 12
#: They read the encoder, and the LLM's layer, its embeddings, its final norm and the layer behind it, each from outside.
FEW = ["prumerge", "aim", "pdrop", "dart", "mmtok"]
PAIRS = [(family, method) for family in FAMILIES for method in FEW]
PAIRS += [(family, method) for family in ("gemma3", "qwen3-vl") for method in load_zoo((), ()).names() if method not in FEW]


def device_map(model: Any) -> dict[str, str]:
    """Encoder, projector, every second decoder layer and the last norm on the disk, the rest on the CPU."""
    names = {module: name for name, module in model.named_modules()}
    family = family_of(model)
    decoder, root = family.decoder(model), family.root(model)
    # transformers itself cannot run Idefics3's encoder from the disk, nor a head without tied weights
    towers = "cpu" if model.config.model_type == "idefics3" else "disk"
    found = {names[child]: towers for child in root.children() if child is not decoder}
    found |= {f"{names[root]}.{name}": "cpu" for name, _ in root.named_parameters(recurse=False)}
    found |= {names[child]: "disk" if name == "norm" else "cpu" for name, child in decoder.named_children() if name != "layers"}
    found |= {names[layer]: ("cpu", "disk")[index % 2] for index, layer in enumerate(decoder.layers)}
    return found | {name: "cpu" for name, child in model.named_children() if child is not root}


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A tiny model in memory, and the same one spread over the CPU and the disk, of the family asked for last."""
    held: dict[str, tuple[Any, Any]] = {}

    def of(family: str) -> tuple[Any, Any]:
        if family not in held:
            held.clear()
            folder = tmp_path_factory.mktemp(family)
            here = tiny_model(family, layers=LAYERS)
            here.save_pretrained(folder)
            there = AutoModelForImageTextToText.from_pretrained(
                folder, device_map=device_map(here), offload_folder=folder / "offload", dtype=torch.float32
            ).eval()
            there.generation_config = here.generation_config
            held[family] = here, there
        return held[family]

    return of


def generate(model: Any, inputs: dict[str, Any], method: str) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    with torch.no_grad(), tokenzoo.apply(model, method, **words(inputs)) as run:
        options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        made = model.generate(**inputs, **options)
        return made.sequences, torch.stack(made.logits), [run.trace.visual_tokens(i) for i in range(len(made.sequences))]


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_model_partly_on_the_disk_keeps_the_same_tokens(placed: Any, family: str, method: str) -> None:
    here, there = placed(family)
    assert sum(parameter.device.type == "meta" for parameter in there.parameters()) > 40
    inputs = tiny_inputs(here, "left")
    try:
        tokens, logits, counts = generate(here, inputs, method)
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    made, got, kept = generate(there, inputs, method)
    assert kept == counts and torch.equal(made, tokens)
    torch.testing.assert_close(got, logits, atol=5e-5, rtol=0)


def test_run_on_all_devices_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "picture.png")
    picture = ["--image", str(tmp_path / "picture.png"), "--max-new-tokens", "1"]
    assert cli.run(["run", "--device", "auto", *picture, "what is this ?"]) == 0
    spread = capsys.readouterr().out
    assert cli.run(["run", "--device", "cpu", *picture, "what is this ?"]) == 0
    assert spread == capsys.readouterr().out


def test_compare_measures_on_one_device() -> None:
    from tokenzoo.comparison.plan import LoadedModels
    from tokenzoo.comparison.settings import Settings

    with pytest.raises(UserError, match="on one device"):
        LoadedModels(Settings(methods="none", device="auto")).load("embedded:llava")
