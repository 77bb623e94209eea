"""The four studies run, and their tables are what was measured; the text experiment hides what it says it hides."""

from __future__ import annotations

import json

import pytest
import torch

from tokenzoo import UserError, cli
from tokenzoo.comparison.statistics import paired_difference
from tokenzoo.comparison.store import Store
from tokenzoo.studies import STUDIES, agreement, common, layers, overhead, text_tokens, tradeoff
from tokenzoo.testing import tiny_inputs, tiny_model


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "results.sqlite")
    return common.open_lab("embedded:llava", "attribute", 2, 0, store, None, False)


@pytest.mark.parametrize(("module", "rows"), [(tradeoff, 13), (layers, 10), (overhead, 6), (text_tokens, 9)])
def test_a_study_has_table_plot_and_verdict(lab, module, rows, monkeypatch):
    monkeypatch.setattr(overhead, "ROUNDS", 2)
    study = module.run(lab)
    assert len(study.rows) == rows and all(len(row) == len(study.header) for row in study.rows)
    assert study.verdict in ("agrees", "partly agrees", "differs", "cannot tell") and study.here and study.paper
    assert study.plot().axes and json.dumps(study.data)


@pytest.mark.parametrize(
    ("lost", "won", "same", "paper", "held"),
    [(420, 0, 580, 0, False), (5, 5, 990, 0, True), (73, 0, 927, -7.3, True), (2, 1, 7, 0, None), (0, 0, 2, 0, None)],
)
def test_a_claim_is_held_against_an_interval(lost, won, same, paper, held):
    """-42 points where the paper has 0 is no agreement, and two questions prove nothing."""
    reference = [True] * (lost + same) + [False] * won
    difference = paired_difference([False] * lost + [True] * (same + won), reference)
    assert common.held_against(difference, paper, slack=5) is held


def test_no_claim_holds_by_construction():
    assert common.verdict([False, False]) == "differs" and common.verdict([True, False]) == "partly agrees"
    assert common.verdict([True, True]) == "agrees" and common.verdict([None, None]) == "cannot tell"


def test_every_study_is_a_command():
    from tokenzoo.commands.study import NAMES

    assert tuple(STUDIES) == NAMES


def test_the_window_grid_scales_to_the_depth():
    assert [layers._scaled(window, 28) for window in layers.PAPER] == list(layers.PAPER)
    assert layers._scaled((28, 29), 12) == (12, 13) and layers._scaled((7, 8), 12) == (3, 4)
    assert layers._scaled((14, 22), 12) == (6, 9) and layers._scaled((21, 29), 12) == (9, 13)


def test_published_settings_scale_to_depth_and_prompt():
    from tokenzoo.zoo.plugins import load_zoo

    (table,) = agreement.tables(load_zoo((), ()), "image", layers=12, tokens=144)
    assert table.methods["VTW (high)"] == "vtw:K=3" and table.methods["LLaVA-PruMerge+"] == "prumerge_plus:tokens=36"
    assert table.methods["AIM (low)"] == "aim:retention=0.125,l1=5,l2=8,prune_before=true"
    assert table.relative["VTW (low)"] < table.relative["FastV (low)"] < table.relative["AIM (high)"] < 1
    (videos,) = agreement.tables(load_zoo((), ()), "video", layers=28, tokens=6272)
    assert videos.methods["AIM"] == str(load_zoo((), ()).build("aim@video")), "at the table's own size nothing changes"


def test_tau_is_of_the_order_and_its_interval_of_the_questions():
    printed = {"a": 1.0, "b": 0.9, "c": 0.8}
    many = {name: [True] * right + [False] * (200 - right) for name, right in (("a", 180), ("b", 120), ("c", 60))}
    same = agreement.Tau.of(many, printed, seed=0)
    assert (same.value, same.low, same.high, same.pairs) == (1, 1, 1, 3)
    reverse = agreement.Tau.of(many, {"a": 0.8, "b": 0.9, "c": 1.0}, seed=0)
    assert reverse.value == -1 and agreement.Tau.together([same, reverse]).value == 0
    few = agreement.Tau.of({name: answers[::40] for name, answers in many.items()}, printed, seed=0)
    assert few.low < few.value
    assert agreement.Tau.of({name: [True] for name in "abc"}, printed, seed=0).value == 0


def test_agreement_prints_each_tables_tau(lab):
    study = agreement.run([lab])
    assert len(study.rows) == 10 and study.rows[-1][0].endswith("tau-b") and "[" in study.rows[-1][2]
    assert study.plot().axes and json.dumps(study.data)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["text", "visual"])
def test_hidden_tokens_reach_no_other_row(kind, attention):
    """Changing the tokens that are hidden from layer 0 on changes no other row's logits; showing them does."""
    model = tiny_model("llava")
    model.set_attn_implementation(attention)
    inputs = tiny_inputs(model, "left")
    family = text_tokens.family_of(model)
    decoder = family.decoder(model)
    first = decoder.layers[0]

    def last_logits(noise: bool, layer: int | None) -> torch.Tensor:
        hidden = {}

        def spoil(module, args, kwargs):
            mask = kwargs.get("attention_mask")
            states = args[0].clone()
            if noise:
                rows = hidden.setdefault("rows", ~_seen(mask, inputs))
                states[rows] += 1
            return (states, *args[1:]), kwargs

        with torch.no_grad(), text_tokens.hidden_tokens(model, layer, kind, 0.5, seed=3):
            handle = first.register_forward_pre_hook(spoil, with_kwargs=True)
            try:
                return model(**inputs).logits[:, -1]
            finally:
                handle.remove()

    plain = last_logits(False, 0)
    torch.testing.assert_close(last_logits(True, 0), plain)
    assert not torch.allclose(last_logits(False, None), plain)


def _seen(mask, inputs):
    """Which columns the last row attends to, or padding (left alone)."""
    last = mask[:, 0, -1]
    seen = last if last.dtype == torch.bool else last == 0
    return seen | ~inputs["attention_mask"].bool()


def test_what_is_hidden_stays_hidden_while_decoding():
    model = tiny_model("llava")
    inputs = tiny_inputs(model, "left")
    masks = []
    with text_tokens.hidden_tokens(model, 0, "visual", 0.5, seed=3):
        layer = model.model.language_model.layers[0]
        handle = layer.register_forward_pre_hook(lambda m, a, kw: masks.append(kw["attention_mask"][:, 0, -1]), with_kwargs=True)
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        handle.remove()
    prompt = inputs["input_ids"].shape[1]
    assert [mask.shape[-1] for mask in masks] == [prompt, prompt + 1, prompt + 2]
    for mask in masks[1:]:
        assert torch.equal(mask[:, :prompt], masks[0]) and mask[:, prompt:].all()
    assert (~masks[0] & inputs["attention_mask"].bool()).sum(1).tolist() == [18, 18, 18]


def test_nothing_is_left_on_the_model():
    model = tiny_model("llava")
    before = sum(len(module._forward_pre_hooks) for module in model.modules())
    with text_tokens.hidden_tokens(model, 1, "text", 0.5, seed=0):
        assert sum(len(module._forward_pre_hooks) for module in model.modules()) > before
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == before


def test_one_kind_of_input_at_a_time():
    with pytest.raises(UserError, match="one kind of input"):
        common.open_lab("embedded", "all", 1, 0, None, None, False)


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    out = tmp_path / "out"
    assert cli.run(["study", "layers", "--tasks", "attribute", "--limit", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Here: " in printed and "Paper: " in printed and max(map(len, printed.splitlines())) <= 100
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "layers.pdf", "layers.png"]
