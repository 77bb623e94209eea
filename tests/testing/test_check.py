"""`check` finds every broken plugin in the words of the guarantee it breaks, and nothing wrong with a right one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenzoo import Reduction, TokenReducer
from tokenzoo.testing import assert_golden, check_reducer, visual_tokens
from tokenzoo.testing.authors import assert_contract, decide
from tokenzoo.zoo.additions import import_file, reducers_in
from tokenzoo.zoo.plugins import load_zoo

BROKEN = Path(__file__).parents[1] / "broken_plugins"
#: What is found first of each plugin that can be loaded: the guarantee, and words of the sentence.
FOUND = {
    "batch_as_one": (6, "is out of range: 36 visual tokens were given"),
    "breaks_promise": (6, "it declared 18 tokens and returned 19"),
    "caches_another_number": (6, "(in the cache of layer 1): it declared 18 tokens and returned 19"),
    "drops_text": (6, "text token 0 of the prompt is gone in decoder layer 2"),
    "duplicates": (6, "the same token is kept twice"),
    "keeps_state": (6, "the same call twice keeps other tokens"),
    "mutates_input": (3, "pick (layer 1) changed its input in place (hidden_states)"),
    "not_a_number": (6, "features hold NaN or infinity"),
    "out_of_range": (6, "is out of range: 36 visual tokens were given"),
    "raises": (4, "KeyError: 'no such key' (raises.py, line 16)"),
    "reads_by_state": (3, "it wrote to self (steps)"),
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

    def kept(self, entered, layers):
        return {1: int(self.keep * entered)}

    def score(self, layer):
        return layer.visual.float()

    def at_retention(self, retention, layers):
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

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        self.seen = len(tokens.features)
        return torch.arange(self.seen // 2)


@dataclass
class Idle(TokenReducer):
    name = "idle"

    def kept(self, entered, layers):
        return {1: entered}


class Greedy(Writes):
    name = "greedy"

    def left(self, views, source, architecture):
        return 2 * sum(views)


@dataclass
class Merges(TokenReducer):
    """Right: pairs are averaged before the LLM and again inside it."""

    name = "merges"

    def left(self, views, source, architecture):
        return sum(views) // 2

    def reduce(self, tokens):
        return _pairs(tokens.features)

    def kept(self, entered, layers):
        return {3: entered // 2}

    def pick(self, layer, count):
        return _pairs(layer.hidden_states[layer.visual])


class Appends(Merges):
    """Right: what is merged inside the LLM stands behind its picture, and positions are counted anew."""

    name = "appends"
    layer_positions = "renumber"

    def pick(self, layer, count):
        pairs = _pairs(layer.hidden_states[layer.visual])
        return Reduction(pairs.features, pairs.anchors.flip(0), appended=min(2, count))


def _pairs(features):
    half = len(features) // 2
    return Reduction(features[: 2 * half].view(half, 2, -1).mean(1), torch.arange(half) * 2)


@pytest.mark.parametrize(
    ("method", "guarantee", "words"),
    [
        (Writes, 3, "it wrote to self (seen)"),
        (Idle, 1, "not one token was dropped"),
        (Greedy, 4, "promises to leave [72] of the [36] tokens"),
    ],
)
def test_quieter_faults(method: type[TokenReducer], guarantee: int, words: str) -> None:
    findings = check_reducer(method, families=["llava"], backends=["sdpa"])
    assert [f for f in findings if f.guarantee == guarantee and words in f.message], findings


def test_a_right_method_passes() -> None:
    assert check_reducer(Merges, families=["llava", "qwen2-vl"], backends=["sdpa"]) == []
    assert assert_contract(Merges()) == ""
    assert check_reducer(Appends, families=["llava", "llava-next"], backends=["sdpa"]) == []


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
    kept = decide(uniform, visual_tokens(features, (4, 4)))
    np.savez(path, features=features, grids=[[4, 4]], kept=kept, merged=features[kept])
    assert_golden(uniform, path)
    np.savez(path, features=features, grids=[[4, 4]], kept=kept + 1)
    with pytest.raises(AssertionError, match="expected"):
        assert_golden(uniform, path)
    np.savez(path, features=features)
    with pytest.raises(ValueError, match="must hold features, grids"):
        assert_golden(uniform, path)
