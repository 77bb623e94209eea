"""The kit on a device that is not the CPU, and in short number formats: as sharp there, and refused where they are not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from click.testing import CliRunner
from damage import one_layer_later, swap_a_token

from tokenzoo import TokenReducer
from tokenzoo.cli import cli
from tokenzoo.errors import UserError
from tokenzoo.testing.case import Outcome, run
from tokenzoo.testing.check import check_all, check_independence, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.emulated import OnDevice, emulated_devices
from tokenzoo.testing.guarantees import check_logits
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import Place, tiny_model
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 12


@pytest.fixture
def device() -> Iterator[str]:
    with emulated_devices():
        yield "emulated:1"


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["check", *arguments], standalone_mode=False)
    return int(result.exception is not None), f"{result.output}{result.exception or ''}"


def test_a_right_method_passes_on_a_device(device: str) -> None:
    code, said = check("fastv", "--device", device, "--family", "llava", "--backend", "sdpa")
    assert code == 0 and "4 runs on 1 model families, emulated:1 float32." in said and "Every guarantee holds." in said


class ForgetsDevice(TokenReducer):
    """Right on the CPU."""

    name = "forgets-device"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        return torch.arange(len(tokens.features) // 2)


def test_a_method_that_forgets_the_device_is_found_there_alone(device: str) -> None:
    here, there = (tiny_case("llava", "single", layers=LAYERS, place=Place(name)) for name in ("cpu", device))
    assert check_case(here, [ForgetsDevice()]).findings == []
    (finding,) = check_case(there, [ForgetsDevice()]).findings
    assert "kept indices lie on cpu, the tokens on emulated:1" in finding.message


@pytest.mark.parametrize("family", ["llava-onevision", "qwen3-vl-moe"])
def test_models_and_inputs_are_the_same_on_a_device(family: str, device: str) -> None:
    here, there = tiny_model(family, layers=2), tiny_model(family, layers=2, device=device)
    assert all(weight.device == torch.device(device) for weight in there.parameters())
    inputs, moved = tiny_inputs(here, "left"), tiny_inputs(there, "left")
    for name, value in inputs.items():
        assert isinstance(moved[name], OnDevice) and torch.equal(moved[name].inside, value)
    logits = there(**moved).logits
    torch.testing.assert_close(logits.inside, here(**inputs).logits)


@pytest.mark.parametrize(
    ("place", "backend", "words"),
    [
        (Place("cuda:99"), "sdpa", "There is no device 'cuda:99' here"),
        (Place("cpu", torch.bfloat16), "flash_attention_2", "needs a GPU and a short number format"),
        (Place("meta"), "sdpa", "computes nothing"),
    ],
)
def test_what_a_machine_has_not_is_refused(place: Place, backend: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_all(load_zoo().build("fastv").reducers[0], ["llava"], [backend], place=place)


def test_an_unknown_number_format_is_refused() -> None:
    code, said = check("fastv", "--dtype", "bfloat")
    assert code == 1 and "Unknown dtype 'bfloat'. Did you mean 'bfloat16'?" in said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("damage", [swap_a_token, one_layer_later])
def test_the_oracle_is_sharp_in_short_formats(dtype: torch.dtype, damage: Callable[[Outcome], None]) -> None:
    reducers = list(load_zoo().build("fastv").reducers)
    case = tiny_case("llava", "left", layers=LAYERS, place=Place("cpu", dtype))
    outcome = run(case, [watch(reducer, number) for number, reducer in enumerate(reducers)])
    assert list(check_logits(case, outcome, reducers)) == []
    damaged = copy.deepcopy(outcome)
    damage(damaged)
    assert list(check_logits(case, damaged, reducers))


def test_short_formats_are_checked_and_what_is_not_asked_is_said() -> None:
    result = check_all(load_zoo().build("aim").reducers[0], ["llava"], ["sdpa"], place=Place("cpu", torch.bfloat16))
    assert result.findings == [] and result.runs == 4
    assert "alone and in a batch is not asked" in result.notes[0]


def test_stages_of_other_samples_are_no_difference() -> None:
    """In a batch a sample passes stages in which only others lose tokens."""
    assert list(check_independence(load_zoo().build("aim").reducers[0], "qwen2.5-vl")) == []
