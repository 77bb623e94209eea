"""The mask oracle is sharp: a host that were a little wrong would be found out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from damage import one_layer_later, swap_a_token

from tokenzoo.testing.case import Outcome, run
from tokenzoo.testing.check import tiny_case
from tokenzoo.testing.guarantees import check_entry, check_logits, check_promises, check_structure
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 12


def outcome_of(method: str, family: str = "llava", case: str = "left") -> tuple[Outcome, list]:
    reducers = list(load_zoo().build(method).reducers)
    watched = [watch(reducer, number) for number, reducer in enumerate(reducers)]
    tiny = tiny_case(family, case, layers=LAYERS)
    return run(tiny, watched), reducers


def other_logits(outcome: Outcome) -> None:
    outcome.logits[2] = outcome.logits[2] + 2e-4


def other_token(outcome: Outcome) -> None:
    outcome.generated = outcome.generated.clone()
    outcome.generated[0, -1] = (outcome.generated[0, -1] + 1) % 80


@pytest.mark.parametrize("damage", [swap_a_token, one_layer_later, other_logits, other_token])
def test_damage_to_what_is_inside_the_llm_is_found(damage: Callable[[Outcome], None]) -> None:
    outcome, reducers = outcome_of("fastv")
    case = tiny_case("llava", "left", layers=LAYERS)
    assert list(check_logits(case, outcome, reducers)) == []
    damaged = copy.deepcopy(outcome)
    damage(damaged)
    findings = list(check_logits(case, damaged, reducers))
    assert findings and findings[0].guarantee == 1


def test_wrong_positions_are_found() -> None:
    outcome, reducers = outcome_of("pdrop")
    case = tiny_case("llava", "left", layers=LAYERS)
    assert list(check_logits(case, outcome, reducers)) == []
    keeping = [reducers[0].replace(position="keep")]
    assert list(check_logits(case, outcome, keeping))


def test_a_wrong_row_at_the_entry_is_found() -> None:
    outcome, reducers = outcome_of("uniform")
    case = tiny_case("llava", "left", layers=LAYERS)
    assert list(check_entry(case, outcome, reducers)) == []
    outcome.entry[0, -8] += 0.01
    assert "what entered the LLM differs" in str(next(check_entry(case, outcome, reducers)))


def test_wrong_cache_lengths_missing_text_and_broken_promises_are_found() -> None:
    outcome, reducers = outcome_of("fastv")
    case = tiny_case("llava", "left", layers=LAYERS)
    assert list(check_structure(case, outcome)) == list(check_promises(case, outcome, reducers)) == []
    outcome.kv_lengths[3] += 1
    assert "the cache of layer 3" in str(next(check_structure(case, outcome)))
    assert "promises" in str(next(check_promises(case, outcome, [reducers[0].replace(R=0.4)])))
    first, rows = outcome.trace.samples[0].stages[-1]
    outcome.trace.samples[0].stages[-1] = (first, rows[1:])
    assert "text token 0 of the prompt is gone" in str(next(check_structure(case, outcome)))


@pytest.mark.parametrize(
    "family", ["llava", "qwen2.5-vl", "llava-onevision", "qwen3-vl", "qwen3.5", "gemma3", "gemma4", "gemma4-moe"]
)
def test_without_reduction_the_oracle_is_the_plain_model(family: str) -> None:
    case = tiny_case(family, "right", layers=LAYERS)
    outcome, reducers = outcome_of("none", family, "right")
    assert list(check_logits(case, outcome, reducers)) == []
    for index, logits in enumerate(outcome.logits):
        assert torch.equal(logits, case.prompt.logits[index][case.prompt.mask[index]])
