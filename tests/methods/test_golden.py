"""Every golden case, through the plugin as shipped: what the authors' released code returned, ours returns too."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from golden_cases import GoldenCases
from tokenzoo_plugins.aim import AIM
from tokenzoo_plugins.fastv import FastV
from tokenzoo_plugins.pdrop import PyramidDrop
from tokenzoo_plugins.prumerge import PruMerge, encoder_attention, outlier_share
from tokenzoo_plugins.prumerge_plus import PruMergePlus
from tokenzoo_plugins.vtw import VisualTokensWithdrawal, find_k

import tokenzoo
from tokenzoo import Architecture, Source, ops
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.testing.authors import decide

GOLDEN = GoldenCases("golden")
cases, golden = GOLDEN.cases, GOLDEN.arrays


@cache
def tiny(name: str, head: bool = False) -> Any:
    """The golden's weights in the Hugging Face class."""
    arrays = golden(name)
    weights = {key.removeprefix("w__"): value for key, value in arrays.items() if key.startswith("w__")}
    if not head:
        weights = {key.removeprefix("model."): value for key, value in weights.items() if "lm_head" not in key}
    family = "Qwen2" if "qwen2" in name else "Llama"
    heads = int(arrays["heads"])
    config = getattr(transformers, f"{family}Config")(
        hidden_size=int(arrays["hidden"]),
        num_hidden_layers=int(arrays["num_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(arrays.get("kv_heads", heads)),
        intermediate_size=next(value for key, value in weights.items() if "gate_proj" in key).shape[0],
        vocab_size=64,
        rms_norm_eps=float(arrays["rms_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(arrays["rope_theta"])},
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )
    model = getattr(transformers, f"{family}{'ForCausalLM' if head else 'Model'}")(config).eval()
    model.load_state_dict(weights)
    return model


def span(arrays: dict[str, Any]) -> list[tuple[int, int]]:
    start = int(arrays["sys_len"])
    return [(start, start + int(arrays["img_len"]))]


def visual_tokens(x: torch.Tensor, layer: tuple[torch.Tensor, torch.Tensor] | None = None, cls: bool = False) -> Any:
    """The event that the host makes of the views x [views, tokens, width]."""
    views, tokens, _ = x.shape
    return VisualTokens(
        kind="image",
        features=x.flatten(0, 1),
        view=torch.arange(views).repeat_interleave(tokens),
        grids=((1, tokens),) * views,
        early=layer is not None,
        has_cls=cls,
        encoder=layer and Keys(layer),
    )


class Keys:
    """An encoder of which the queries and keys are given."""

    def __init__(self, query_key: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.given = query_key

    def query_key(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.given


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=tolerance)


# --- AIM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("aim_merge_T*"))
def test_aim_merge(name: str) -> None:
    arrays = golden(name)
    match = ops.bipartite_match(arrays["metric"], int(arrays["r"]))
    assert close(ops.mean_by_assignment(arrays["x"], match.assignment, match.anchors.shape[1]), arrays["out"])
    shares = torch.zeros_like(arrays["assign"]).scatter_(1, match.assignment[:, None], 1.0)
    assert torch.equal(shares / shares.sum(-1, keepdim=True), arrays["assign"])


@pytest.mark.parametrize("name", cases("aim_merge_ties"))
def test_aim_merge_with_ties(name: str) -> None:
    """Equal similarities may come in any order: the same number of outputs, the same rows."""
    arrays = golden(name)
    match = ops.bipartite_match(arrays["metric"], int(arrays["r"]))
    ours = ops.mean_by_assignment(arrays["x"], match.assignment, match.anchors.shape[1])
    assert sorted(map(tuple, ours[0].round(decimals=4).tolist())) == sorted(
        map(tuple, arrays["out"][0].round(decimals=4).tolist())
    )


@pytest.mark.parametrize(("retention", "round_"), [(0.5, 1), (0.25, 2), (0.125, 3), (0.063, 4), (0.031, 5), (0.016, 6)])
@pytest.mark.parametrize("name", cases("aim_merge_chain_ov"))
def test_aim_merges_frames_in_rounds(name: str, retention: float, round_: int) -> None:
    arrays = golden(name)
    merged = decide(AIM(retention=retention), visual_tokens(arrays["x0"]))
    assert AIM(retention=0.016)._removals(196) == arrays["rs"].tolist()
    assert close(merged.features.view(2, -1, 24), arrays[f"x{round_}"])


@pytest.mark.parametrize(("retention", "round_"), [(0.5, 1), (0.25, 2), (0.125, 3)])
@pytest.mark.parametrize("name", cases("aim_merge_chain_llava15_12p5"))
def test_aim_merges_clip_tokens_by_their_keys(name: str, retention: float, round_: int) -> None:
    arrays = golden(name)
    keys = torch.cat([torch.full((1, 1, 24), torch.nan), arrays["k0"]], dim=1)
    method, tokens = AIM(retention=retention), visual_tokens(arrays["x0"], (keys, keys), cls=True)
    assert AIM(retention=0.125)._removals(576) == arrays["rs"].tolist()
    assert close(decide(method, tokens).features[None], arrays[f"x{round_}"])
    one = Architecture("a", 24, 1, 1, 1, 1, 1, encoder_layers=24, has_cls=True)
    assert method.early(Source("image", (576,)), one) and not method.early(Source("video", (576, 576)), one)


@pytest.mark.parametrize("name", cases("aim_importance_[0-9]*"))
def test_aim_importance(name: str) -> None:
    arrays = golden(name)
    logits = arrays["logits"][0]
    identity = torch.eye(logits.shape[-1]).expand(len(logits), -1, -1)  # so that q Kᵀ are the logits
    ours = ops.pagerank(logits, identity, 1.0, float(arrays["tau"]), int(arrays["iters"]), float(arrays["d"]))
    assert close(ours, arrays["imp"][0], 1e-7)


@pytest.mark.parametrize("name", cases("aim_importance_d"))
def test_aim_importance_with_damping(name: str) -> None:
    arrays = golden(name)
    logits = arrays["logits"][0]
    identity = torch.eye(logits.shape[-1]).expand(len(logits), -1, -1)
    assert close(ops.pagerank(logits, identity, 1.0, 0.5, 3, 0.15), arrays["imp_d015"][0], 1e-7)


@pytest.mark.parametrize("name", cases("aim_importance_leftpad_nan"))
def test_aim_left_padding_is_no_nan(name: str) -> None:
    """Deviation on purpose: the released code makes every score NaN, ours never sees the padding."""
    arrays = golden(name)
    assert arrays["imp"].isnan().all()
    logits = arrays["logits"][0]
    real = int((logits[0, -1] > -1e30).nonzero()[0])
    unpadded = logits[:, real:, real:]
    scores = ops.pagerank(unpadded, torch.eye(unpadded.shape[-1]).expand(len(logits), -1, -1), 1.0)
    assert scores.isfinite().all() and real > 0 and len(scores) == 12 - real


def run_aim(name: str) -> tuple[Any, Any, dict[str, Any], dict[int, torch.Tensor]]:
    """The trace, the last hidden state, the golden's arrays, and each pruning layer's importance of sample 0."""
    arrays, scores = golden(name), {}
    model = tiny(name.split("_prune")[0] + "_weights")

    class Recorded(AIM):
        def score(self, layer: DecoderLayer) -> torch.Tensor:
            score = super().score(layer)
            scores.setdefault(layer.index, score)
            return score

    spans = [(int(start), int(end)) for start, end, _ in arrays["boundaries"]]
    inputs = {key: arrays[key] for key in ("inputs_embeds", "position_ids")}
    with torch.no_grad(), tokenzoo.apply(model, Recorded(retention=1.0), visual=spans) as run:
        hidden = model(attention_mask=arrays["attention_mask"].long(), **inputs).last_hidden_state
    return run.trace, hidden, arrays, scores


def visible(arrays: dict[str, Any], layer: int, sample: int) -> list[int]:
    return arrays["mask_after_layer"][layer, sample].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", cases("aim_qwen2_prune_*") + cases("aim_llama_prune_*"))
def test_aim_prunes_as_released(name: str) -> None:
    """Counts equal at every layer, picks at the first pruning layer; later ones differ in a few at most."""
    trace, hidden, arrays, scores = run_aim(name)
    layers = len(arrays["mask_after_layer"])
    asked = min(scores, default=None)  # a single visual token is kept or dropped unranked
    assert asked is None or close(scores[asked], arrays["importance"][asked, 0], 1e-6)
    assert (asked is None) == (trace.visual_tokens()[0] == 1)
    for sample in range(len(trace.samples)):
        counts = arrays["kept_visual_after_layer"][:, sample].tolist()
        assert trace.visual_tokens(sample)[1:] == counts[:-1]
        first = min(AIM().layers(layers))
        others = []
        for layer in range(layers - 1):
            ours, theirs = trace.samples[sample].rows(layer + 1), visible(arrays, layer, sample)
            if layer <= first:
                assert ours == theirs
            others.append(len(set(ours) - set(theirs)))
        assert max(others) <= 2
        if not any(others):
            assert close(hidden[sample, -1], arrays["last_hidden_state"][sample, -1])


def masked_like_released(name: str, votes: bool) -> list[list[int]]:
    """An oracle that keeps every row and hides pruned ones, as released; `votes`: whether they vote in PageRank."""
    arrays = golden(name)
    model = tiny(name.split("_prune")[0] + "_weights")
    start, end, total = arrays["boundaries"][0].tolist()
    hidden = arrays["inputs_embeds"][:1]
    shown = torch.ones(total, dtype=torch.bool)
    cos, sin = model.rotary_emb(hidden, torch.arange(total)[None])
    kept, picks = AIM().kept(end - start, len(model.layers)), []
    for index, layer in enumerate(model.layers):
        mask = torch.ones(total, total).tril().bool() & (shown | torch.eye(total).bool())
        states = layer.input_layernorm(hidden)
        attention = layer.self_attn
        heads = [
            p(states)[0].unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for p in (attention.q_proj, attention.k_proj)
        ]
        query, key = (x * cos[0] + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin[0] for x in heads)
        key = key.repeat_interleave(len(query) // len(key), 0)
        if index in kept and kept[index] < int(shown[start:end].sum()):
            logits = (query @ key.transpose(1, 2) * attention.scaling).masked_fill(~mask.tril() | ~shown, -torch.inf)
            move = (logits / 0.1).softmax(-1).nan_to_num()
            rank = torch.full((len(query), 1, total), 1 / total)
            if not votes:
                rank = rank * shown
            for _ in range(5):
                rank = rank @ move
            score = rank.square().mean(0).sqrt()[0].masked_fill(~shown, -1)
            best = start + ops.top_indices(score[start:end], kept[index])
            shown = shown.clone()
            shown[start:end] = False
            shown[best] = True
        bias = torch.zeros(1, 1, total, total).masked_fill(~mask, torch.finfo(torch.float32).min)
        hidden = layer(hidden, attention_mask=bias, position_embeddings=(cos, sin))
        picks.append(shown.nonzero()[:, 0].tolist())
    return picks


@pytest.mark.parametrize("name", ["aim_qwen2_prune_b1", "aim_qwen2_prune_b2", "aim_llama_prune_b1"])
@torch.no_grad()
def test_aim_differs_from_released_only_by_the_votes_of_masked_rows(name: str) -> None:
    """Deviation on purpose, and the whole of it: where masked rows vote, the oracle is the released code, where they
    do not, it is ours."""
    trace, _, arrays, _ = run_aim(name)
    layers = len(arrays["mask_after_layer"])
    theirs = [visible(arrays, layer, 0) for layer in range(layers)]
    ours = [trace.samples[0].rows(layer + 1) for layer in range(layers - 1)]
    assert theirs[:-1] != ours
    assert masked_like_released(name, votes=True) == theirs
    assert masked_like_released(name, votes=False)[:-1] == ours


def test_aim_protects_every_samples_own_text() -> None:
    """Deviation on purpose: the released code protects as many tokens as the first sample has, in every sample."""
    embeddings = golden("aim_qwen2_prune_b2")["inputs_embeds"]
    model, spans = tiny("aim_qwen2_weights"), [(5, 29), (11, 20)]
    with torch.no_grad(), tokenzoo.apply(model, AIM(retention=1.0), visual=spans) as run:
        both = model(inputs_embeds=embeddings).last_hidden_state
    assert [run.trace.visual_tokens(sample)[15] for sample in (0, 1)] == [int(24 * 7 / 8), int(9 * 7 / 8)]
    for sample in (0, 1):
        with torch.no_grad(), tokenzoo.apply(model, AIM(retention=1.0), visual=spans[sample : sample + 1]) as alone:
            single = model(inputs_embeds=embeddings[sample : sample + 1]).last_hidden_state
        assert alone.trace.samples[0].stages == run.trace.samples[sample].stages
        assert close(both[sample, -1], single[0, -1])


@pytest.mark.parametrize("name", cases("aim_qwen2_generate"))
def test_aim_generates_as_released_while_its_positions_are_right(name: str) -> None:
    """The released code decodes step 2 on at wrong positions (15 instead of 55); up to there the tokens agree."""
    arrays = golden(name)
    model, (start, end, _) = tiny("aim_qwen2_weights", head=True), arrays["boundaries"].tolist()
    with torch.no_grad(), tokenzoo.apply(model, AIM(retention=1.0), visual=[(start, end)]) as run:
        ours = model.generate(inputs_embeds=arrays["inputs_embeds"], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert arrays["step1_layer0_pos"].tolist() == [54] and arrays["step2_layer0_pos"].tolist() == [15]
    assert ours[0, :2].tolist() == arrays["tokens"][:2].tolist()
    rows = run.trace.samples[0]
    for layer in (0, 1, 14, 15, 22, 27):
        shown = arrays[f"step0_layer{layer}_visible"].nonzero()[:, 0].tolist()
        assert len(rows.rows(layer)) == len(shown)
        if layer <= 15:
            assert rows.rows(layer) == shown


# --- FastV, PyramidDrop, VTW ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("fastv_[0-9]*"))
def test_fastv(name: str) -> None:
    arrays, rows = golden(name), []
    model, layer = tiny("fastv_weights"), int(arrays["K"])

    class Watch:
        @tokenzoo.hookimpl
        def tokenzoo_after_layer(self, layer: DecoderLayer) -> None:
            rows.append(layer.hidden_states)

    with (
        torch.no_grad(),
        tokenzoo.apply(model, FastV(K=layer, rank=int(arrays["rank"])), visual=span(arrays), observers=[Watch()]) as run,
    ):
        hidden = model(inputs_embeds=arrays["inputs_embeds"]).last_hidden_state
    assert run.trace.samples[0].rows(layer) == arrays["kept_inplace"].tolist() == arrays["kept_mask"].tolist()
    assert close(rows[0][None], arrays["hidden_into_layer_K"]) and close(hidden, arrays["last_hidden_inplace"])


@pytest.mark.parametrize("name", cases("fastv_[0-9]*"))
def test_fastv_reads_the_attention_of_the_layer_before_k(name: str) -> None:
    arrays, weights = golden(name), []

    class Row(FastV):
        def score(self, layer: DecoderLayer) -> torch.Tensor:
            weights.append(layer.attention("last")[:, 0])
            return super().score(layer)

    with torch.no_grad(), tokenzoo.apply(tiny("fastv_weights"), Row(K=int(arrays["K"])), visual=span(arrays)):
        tiny("fastv_weights")(inputs_embeds=arrays["inputs_embeds"])
    assert close(weights[0], arrays["attn_layer_Km1"][0, :, -1])


@pytest.mark.parametrize("name", cases("fastv_hf_counts"))
def test_fastv_rounds_as_the_hugging_face_port(name: str) -> None:
    arrays = golden(name)
    for tokens, share, kept in zip(*(arrays[key].tolist() for key in ("img_len", "r", "rank_round")), strict=True):
        assert FastV(R=share).kept(tokens, 8)[1] == kept


@pytest.mark.parametrize("name", cases("pdrop_b*") + cases("pdrop_llava15"))
def test_pdrop(name: str) -> None:
    arrays = golden(name)
    method = PyramidDrop(layer_list=tuple(arrays["layer_list"].tolist()), ratios=tuple(arrays["ratios"].tolist()))
    spans = [(start, start + count) for start, count, _ in arrays["spec"].tolist()]
    inputs = {key: arrays[key] for key in ("inputs_embeds", "position_ids")}
    model, positions = tiny("pdrop_weights"), []
    hook = model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    with torch.no_grad(), tokenzoo.apply(model, method, visual=spans) as run:
        hidden = model(attention_mask=arrays["attention_mask"].long(), **inputs).last_hidden_state
    hook.remove()
    for stage, layer in enumerate(method.layer_list):
        for sample in range(len(spans)):
            assert run.trace.samples[sample].rows(layer) == arrays[f"stage{stage}_kept_abs_b{sample}"].tolist()
        assert torch.equal(positions[stage + 1], arrays[f"stage{stage}_position_ids"])
    for sample in range(len(spans)):
        length = len(run.trace.samples[sample].rows(len(model.layers) - 1))
        assert close(hidden[sample, :length], arrays["last_hidden_state"][sample, :length])


@pytest.mark.parametrize("name", cases("vtw_[0-9]*"))
def test_vtw(name: str) -> None:
    arrays, positions = golden(name), []
    model = tiny("vtw_weights", head=True)
    with torch.no_grad(), tokenzoo.apply(model, VisualTokensWithdrawal(K=int(arrays["k"])), visual=span(arrays)) as run:
        output = model(inputs_embeds=arrays["inputs_embeds"])
    assert run.trace.tokens() == arrays["tokens_per_layer"].tolist()
    lengths = [output.past_key_values.get_seq_length(layer) for layer in range(len(run.trace.tokens()))]
    assert lengths == arrays["kv_len_per_layer"].tolist()
    positions = [run.trace.samples[0].entry[row] for row in run.trace.samples[0].rows(7)]
    assert positions == arrays["last_layer_position_ids"].tolist()
    assert close(output.logits, arrays["logits"], 1e-4)


@pytest.mark.parametrize("name", cases("vtw_findk"))
def test_vtw_finds_k(name: str) -> None:
    arrays = golden(name)
    model = tiny("vtw_weights", head=True)
    calls = [{"inputs_embeds": sample[None]} for sample in arrays["inputs_embeds"]]
    for eta in (0.3, 3.0):
        assert find_k(model, calls, eta, visual=[(35, 611)]) == int(arrays[f"k_for_eta_{eta}"])
    means = arrays["kl"].mean(0)
    assert find_k(model, calls, float(means[1]) * 1.0001, visual=[(35, 611)]) == 6
    assert find_k(model, calls, float(means[1]) * 0.9999, visual=[(35, 611)]) == 7
    with pytest.raises(tokenzoo.UserError, match=f"the smallest is {means[2]:.4g} at K=7. Raise eta"):
        find_k(model, calls, 0.003, visual=[(35, 611)])


# --- PruMerge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("prumerge_[0-9]*") + cases("prumergeplus_*"))
def test_prumerge(name: str) -> None:
    arrays = golden(name)
    mode = "fixed" if name.endswith("fixed8") else "adaptive"
    method = PruMergePlus(mode=mode, official_duplicates=mode == "fixed") if "plus" in name else PruMerge(mode=mode)
    x = arrays["x_patch"]
    for view in range(len(x)):
        attention = encoder_attention(arrays["q"][view], arrays["k"][view], has_cls=True)
        assert close(attention, arrays["cls_attn"][view])
        assert method.pick(attention, None).tolist() == arrays["idx"][view].tolist()
    if len(x) == 1:
        assert outlier_share(attention) == pytest.approx(float(arrays["outlier_ratio"]))
    merged = decide(method, visual_tokens(x, (arrays["q"], arrays["k"]), cls=True))
    assert close(merged.features.view(len(x), -1, x.shape[-1]), arrays["out"])


@pytest.mark.parametrize("name", cases("prumerge_siglip_0"))
def test_prumerge_without_cls(name: str) -> None:
    """SigLIP: the golden's query is the mean of the patches'."""
    arrays = golden(name)
    query = arrays["cls_q"].expand_as(arrays["k"])
    attention = encoder_attention(query[0], arrays["k"][0], has_cls=False)
    assert close(attention, arrays["attn"][0])
    assert PruMerge().pick(attention, None).tolist() == arrays["idx"][0].tolist()
    assert close(decide(PruMerge(), visual_tokens(arrays["x"], (query, arrays["k"]))).features, arrays["out"][0])


@pytest.mark.parametrize("name", [name for name in cases("prumergeplus_*") if name.endswith("fixed8")])
def test_prumerge_plus_without_duplicates(name: str) -> None:
    """Deviation on purpose: no token twice, the same count; the released picks are all there."""
    arrays = golden(name)
    ours = PruMergePlus(mode="fixed").pick(arrays["cls_attn"][0], None).tolist()
    theirs = arrays["idx"][0].tolist()
    assert len(theirs) > len(set(theirs))
    assert len(ours) == len(set(ours)) == len(theirs) and set(theirs) < set(ours)


@pytest.mark.parametrize("name", cases("*_weights"))
def test_weights_fit_the_hugging_face_class(name: str) -> None:
    assert tiny(name).config.num_hidden_layers == int(golden(name)["num_layers"])


def test_no_golden_case_is_left_untested() -> None:
    assert GOLDEN.named("*") == GOLDEN.tested
