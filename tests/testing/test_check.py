"""`check` finds every broken plugin in the words of the guarantee it breaks, and nothing wrong with a right one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenzoo import Reduction, TokenReducer
from tokenzoo.testing import assert_golden, check_reducer, visual_tokens
from tokenzoo.testing.authors import assert_contract
from tokenzoo.zoo.additions import import_file, reducers_in
from tokenzoo.zoo.plugins import load_zoo

BROKEN = Path(__file__).parents[1] / "broken_plugins"
#: What is found first of each plugin that can be loaded: the guarantee, and words of the sentence.
FOUND = {
    "batch_as_one": (6, "kept index 1..64 is out of range: 36 visual tokens were given"),
    "breaks_promise": (6, "schedule() promises 18 visual tokens in layer 0, 19 were there"),
    "drops_text": (6, "text token 0 of the prompt is gone in decoder layer 2"),
    "duplicates": (6, "the same token is kept twice"),
    "keeps_state": (6, "the same call twice keeps other tokens"),
    "mutates_input": (3, "after_layer (layer 1) changed its input in place (hidden_states)"),
    "not_a_number": (6, "features hold NaN or infinity"),
    "out_of_range": (6, "is out of range: 36 visual tokens were given"),
    "raises": (4, "KeyError: 'no such key' (raises.py, line 13)"),
    "wrong_shape": (6, "features have shape [18, 63], expected [18, 64]"),
}


@pytest.mark.parametrize("name", FOUND)
def test_broken_methods_are_caught(name: str) -> None:
    (method,) = reducers_in(import_file(BROKEN / f"{name}.py"))
    findings = check_reducer(method, families=["llava"], backends=["sdpa"])
    guarantee, words = FOUND[name]
    assert [str(f) for f in findings if f.guarantee == guarantee and words in f.message], findings
    assert str(findings[0]).startswith(f"Guarantee {findings[0].guarantee} (")


@dataclass
class WrongKnob(TokenReducer):
    """Drops all visual tokens after layer 1 when asked to keep all."""

    name = "wrong-knob"
    keep: float = 0.5

    def layers(self, num_layers):
        return (1,)

    def after_layer(self, layer):
        return torch.arange(int(self.keep * len(layer.visual)))

    def at_retention(self, retention):
        return self.replace(keep=1 - retention)


def test_a_knob_that_turns_the_wrong_way_is_found() -> None:
    from tokenzoo.testing.check import check_full_retention

    (finding,) = check_full_retention(WrongKnob(), "llava")
    assert "at retention 1.0 it is not the plain model" in finding.message


def test_the_batch_that_is_read_as_one_sample() -> None:
    """Found even where all samples have as many tokens, so that nothing is out of range."""
    from tokenzoo.testing.check import check_independence

    (method,) = reducers_in(import_file(BROKEN / "batch_as_one.py"))
    (finding,) = check_independence(method(), "llava")
    assert "in a batch it keeps other tokens than alone" in finding.message


@dataclass
class Writes(TokenReducer):
    name = "writes"

    def pre_llm(self, tokens):
        self.seen = len(tokens.features)
        return torch.arange(self.seen // 2)

    def schedule(self, workload):
        return [sum(sum(s.view_tokens) // 2 + s.structural for s in workload.sources)] * workload.architecture.layers


@dataclass
class Idle(TokenReducer):
    name = "idle"

    def after_layer(self, layer):
        return layer.visual[:0]

    def schedule(self, workload):
        return [workload.visual_tokens] * workload.architecture.layers


class NoSchedule(Writes):
    name = "no_schedule"

    def pre_llm(self, tokens):
        return torch.arange(len(tokens.features) // 2)

    def schedule(self, workload):
        raise NotImplementedError("to be done")


@dataclass
class Merges(TokenReducer):
    """Right: pairs are averaged before the LLM and again inside it."""

    name = "merges"

    def pre_llm(self, tokens):
        return _pairs(tokens.features)

    def layers(self, num_layers):
        return (3,)

    def after_layer(self, layer):
        return _pairs(layer.hidden_states[layer.visual])

    def schedule(self, workload):
        entered = sum(sum(s.view_tokens) // 2 + s.structural for s in workload.sources)
        return [entered] * 4 + [entered // 2] * (workload.architecture.layers - 4)


def _pairs(features):
    half = len(features) // 2
    return Reduction(features[: 2 * half].view(half, 2, -1).mean(1), torch.arange(half) * 2)


@pytest.mark.parametrize(
    ("method", "guarantee", "words"),
    [
        (Writes, 3, "it wrote to self (seen)"),
        (Idle, 1, "not one token was dropped"),
        (NoSchedule, 6, "schedule() raised NotImplementedError: to be done"),
    ],
)
def test_quieter_faults(method: type[TokenReducer], guarantee: int, words: str) -> None:
    findings = check_reducer(method, families=["llava"], backends=["sdpa"])
    assert [f for f in findings if f.guarantee == guarantee and words in f.message], findings


def test_a_right_method_passes() -> None:
    assert check_reducer(Merges, families=["llava", "qwen2-vl"], backends=["sdpa"]) == []
    assert assert_contract(Merges()) == ""


def test_the_authors_assertion_fails_in_words() -> None:
    with pytest.raises(AssertionError, match=r"Guarantee 3 \(leaves no trace\) fails on llava, left, sdpa"):
        assert_contract(Writes)


def test_hand_made_tokens() -> None:
    tokens = visual_tokens(torch.zeros(10, 4), [(2, 3), (2, 2)], kind="video")
    assert [len(view) for view in tokens.views()] == [6, 4]
    with pytest.raises(ValueError, match="hold 9 tokens, there are 10"):
        visual_tokens(torch.zeros(10, 4), (3, 3))


def test_golden_cases(tmp_path: Path) -> None:
    features = torch.randn(16, 4)
    path = tmp_path / "case.npz"
    uniform = load_zoo().build("uniform:retention=0.25").reducers[0]
    kept = uniform.pre_llm(visual_tokens(features, (4, 4)))
    np.savez(path, features=features, grids=[[4, 4]], kept=kept, merged=features[kept])
    assert_golden(uniform, path)
    np.savez(path, features=features, grids=[[4, 4]], kept=kept + 1)
    with pytest.raises(AssertionError, match="expected"):
        assert_golden(uniform, path)
    np.savez(path, features=features)
    with pytest.raises(ValueError, match="must hold features, grids"):
        assert_golden(uniform, path)
