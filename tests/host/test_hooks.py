"""What the methods' hooks do with odd input, on events made by hand."""

from __future__ import annotations

import pytest
import torch
from tokenzoo_plugins.aim import AIM
from tokenzoo_plugins.fastv import FastV
from tokenzoo_plugins.pdrop import PyramidDrop
from tokenzoo_plugins.pool import AveragePooling
from tokenzoo_plugins.prumerge import PruMerge, outlier_share
from tokenzoo_plugins.prumerge_plus import PruMergePlus
from tokenzoo_plugins.random import RandomSelection
from tokenzoo_plugins.uniform import UniformSelection
from tokenzoo_plugins.vtw import VisualTokensWithdrawal

from tokenzoo import Architecture, Reduction, Source, TokenReducer, UnsupportedError, Workload
from tokenzoo.host.methods import Methods
from tokenzoo.host.prompt import prompt_of_spans
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.testing.authors import decide

DECODER = Architecture("tiny", 8, 6, 2, 1, 16, 32, encoder_hidden=6, encoder_layers=3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Keys:
    """An encoder of which the queries and keys are given."""

    def __init__(self, *query_key: torch.Tensor) -> None:
        self.given = query_key

    def query_key(self, layer: int) -> tuple[torch.Tensor, ...]:
        return self.given


def tokens_of(*grids: tuple[int, int], has_cls: bool = False, seed: int = 0, early: bool = False) -> VisualTokens:
    sizes = [height * width for height, width in grids]
    encoder = None
    if len(set(sizes)) == 1:
        encoder = Keys(*(3 * normal(len(grids), sizes[0] + has_cls, 6, seed=seed + k) for k in (1, 2)))
    return VisualTokens(
        kind="image",
        features=normal(sum(sizes), 8, seed=seed),
        view=torch.arange(len(grids)).repeat_interleave(torch.tensor(sizes)),
        grids=grids,
        early=early,
        has_cls=has_cls,
        encoder=encoder,
    )


def layer_of(text: int, visual: int, index: int = 1) -> DecoderLayer:
    total, half = text + visual, text // 2
    states = [normal(heads, total, 4, seed=heads) for heads in (2, 1)]
    is_visual = torch.zeros(total, dtype=torch.bool)
    is_visual[half : half + visual] = True
    return DecoderLayer(
        index=index,
        num_layers=6,
        hidden_states=normal(total, 8),
        inputs=normal(total, 8),
        visual=is_visual.nonzero()[:, 0],
        text=(~is_visual).nonzero()[:, 0],
        entered=visual,
        signals=Signals(*states),
    )


class Signals:
    """A decoder of which the queries and keys are given, the next layer's the same."""

    scaling = 0.5

    def __init__(self, query: torch.Tensor, key: torch.Tensor) -> None:
        self.given = query, key

    def query(self, rows: torch.Tensor) -> torch.Tensor:
        return self.given[0][:, rows]

    def key(self, rows: torch.Tensor | None) -> torch.Tensor:
        return self.given[1] if rows is None else self.given[1][:, rows]

    def next_query(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.query(rows)

    def next_key(self, states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return self.key(rows)

    def visible(self, rows: torch.Tensor, columns: torch.Tensor | None, following: bool) -> None:
        """Causal, no more."""


def after(method: TokenReducer, layer: DecoderLayer) -> torch.Tensor | None:
    """What a method keeps after a layer, asked as the host asks; None where everything stays."""
    count = method.kept(layer.entered, layer.num_layers)[layer.index]
    if count >= len(layer.visual):
        return None
    return layer.visual[:0] if count <= 0 else method.pick(layer, count)


# --- before the projector -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus(), PruMerge(mode="fixed"), PruMergePlus(mode="fixed")], ids=str)
@pytest.mark.parametrize("grids", [((1, 1),), ((1, 2),), ((2, 2),), ((3, 3),) * 3, ((6, 6),)], ids=str)
def test_prumerge_of_few_tokens(method: PruMerge, grids: tuple, has_cls: bool) -> None:
    """Fewer candidates than neighbours, no outliers, single tokens: always a valid reduction, as priced."""
    tokens = tokens_of(*grids, has_cls=has_cls)
    total = len(tokens.features)
    result = decide(method, tokens)
    if result is not None:
        tokens.apply(result, method.name)
    assert 1 <= len(tokens.features) <= total
    source = Source("image", tuple(height * width for height, width in grids))
    if method.fixed_schedule:
        assert method.projector_tokens(Workload(DECODER, (source,), 4)) == len(tokens.features)
    if result is not None:
        assert set(range(len(result.features))) <= set(result.assignment.tolist())
        assert torch.equal(result.assignment[result.anchors], torch.arange(len(result.features)))


def test_prumerge_without_outliers_leaves_the_extra_token() -> None:
    tokens = tokens_of((4, 4), has_cls=True)
    tokens.encoder = Keys(torch.zeros(1, 17, 6), torch.zeros(1, 17, 6))
    result = decide(PruMerge(), tokens)
    assert outlier_share(torch.full((16,), 1 / 17)) == 0
    assert torch.allclose(result.features, tokens.features.sum(0, keepdim=True) / 17, atol=1e-6)
    assert len(decide(PruMergePlus(), tokens).features) == 2


@pytest.mark.parametrize("budget", range(1, 30))
@pytest.mark.parametrize("method", [PruMerge, PruMergePlus])
def test_prumerge_keeps_exactly_its_budget(method: type[PruMerge], budget: int) -> None:
    tokens = tokens_of((3, 3), (3, 3), (3, 3))
    result = decide(method(tokens=budget), tokens)
    count = 27 if result is None else len(result.features)
    assert count == max(3, min(budget, 27))
    workload = Workload(DECODER, (Source("video", (9, 9, 9)),), 4)
    assert method(tokens=budget).schedule(workload)[0] == count


def test_prumerge_merges_each_kept_token_with_its_neighbours() -> None:
    """x_i + Σ a_j x_j over its most similar others, written out by hand."""
    tokens = tokens_of((3, 3), has_cls=True)
    query, key = tokens.encoder.given
    weights = (query[0, 0] @ key[0].T / 6**0.5).softmax(-1)[1:]
    key = key[0, 1:] / key[0, 1:].norm(dim=-1, keepdim=True)
    result = decide(PruMerge(tokens=3, neighbours=2), tokens)
    for row, i in enumerate(weights.argsort(descending=True)[:2].tolist()):
        similar = key @ key[i]
        similar[i] = -2
        near = similar.topk(2).indices
        expected = tokens.features[i] + (weights[near, None] * tokens.features[near]).sum(0)
        assert torch.allclose(result.features[row], expected, atol=1e-5)


def test_prumerge_after_another_method_is_refused() -> None:
    tokens = tokens_of((3, 3))
    tokens.apply(torch.arange(4), "first")
    with pytest.raises(UnsupportedError, match="prumerge\\+"):
        decide(PruMerge(), tokens)


def test_prumerge_needs_an_encoder() -> None:
    with pytest.raises(UnsupportedError, match="bare decoder"):
        _ = Methods([PruMerge()], Architecture("decoder", 8, 6, 2, 1, 16, 32), mrope=False, observers=None).encoder_layers


# --- before the LLM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grids", [((1, 1),), ((1, 2),), ((3, 3), (5, 4)), ((0, 0), (2, 2)), ((14, 14),) * 4], ids=str)
@pytest.mark.parametrize("retention", [0.016, 0.3, 0.5, 1.0])
def test_aim_merges_as_priced(grids: tuple, retention: float) -> None:
    tokens, method = tokens_of(*grids), AIM(retention=retention, merge_at="pre_llm")
    before = tokens.features
    result = decide(method, tokens)
    if result is not None:
        tokens.apply(result, "aim")
    source = Source("image", tuple(height * width for height, width in grids))
    assert len(tokens.features) == method.schedule(Workload(DECODER, (source,), 4))[0]
    assert (tokens.view.diff() >= 0).all()
    if result is not None:
        assert torch.equal(result.assignment[result.anchors], torch.arange(len(result.features)))
        ranges = before.amin(0), before.amax(0)
        assert (result.features >= ranges[0] - 1e-6).all() and (result.features <= ranges[1] + 1e-6).all()


def test_aim_after_another_method_merges_by_the_keys_of_what_is_left() -> None:
    tokens = tokens_of((4, 4), has_cls=True, early=True)
    tokens.apply(torch.arange(0, 16, 2), "first")
    assert len(decide(AIM(retention=0.5), tokens).features) == 4


def test_random_depends_on_seed_and_count_alone() -> None:
    first, second = (decide(RandomSelection(), tokens_of((6, 6), seed=seed)) for seed in (0, 5))
    assert torch.equal(first, second) and len(first) == 9 and (first.diff() > 0).all()
    assert not torch.equal(first, decide(RandomSelection(seed=1), tokens_of((6, 6))))
    assert decide(RandomSelection(retention=1), tokens_of((6, 6))) is None
    assert len(decide(RandomSelection(retention=0), tokens_of((6, 6)))) == 0


def test_uniform_takes_the_middles() -> None:
    assert decide(UniformSelection(), tokens_of((4, 4))).tolist() == [2, 6, 10, 14]


def test_pool_of_uneven_grids() -> None:
    tokens = tokens_of((3, 5), (2, 2))
    result = decide(AveragePooling(), tokens)
    assert result.anchors.tolist() == [6, 8, 9, 11, 13, 14, 18]
    assert torch.allclose(result.features[-1], tokens.features[15:].mean(0))
    for row in range(7):
        assert torch.allclose(result.features[row], tokens.features[result.assignment == row].mean(0), atol=1e-6)
    tokens.apply(result, "pool")
    with pytest.raises(UnsupportedError, match="pool\\+"):
        decide(AveragePooling(), tokens)


def test_a_span_of_a_bare_decoder_is_a_square_where_it_can_be() -> None:
    (square, row) = prompt_of_spans([[(0, 16), (20, 26)]], 1, 30).sources
    assert square.visual.grids == ((4, 4),) and row.visual.grids == ((1, 6),)


# --- inside the LLM -------------------------------------------------------------------------------------------------


def test_a_score_of_another_length_is_refused_by_name() -> None:
    class Short(FastV):
        name = "short"

        def score(self, layer):  # type: ignore[no-untyped-def]
            return torch.ones(3)

    layer = DecoderLayer(1, 4, torch.randn(9, 4), torch.randn(9, 4), torch.arange(2, 7), torch.tensor([0, 1, 7, 8]), 5, None)
    with pytest.raises(InvalidReductionError, match=r"'short' \(after layer 1\): score\(\) gave numbers of shape \[3\]"):
        Short().pick(layer, 2)


@pytest.mark.parametrize("visual", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(
    "method",
    [AIM(l1=1, l2=3), AIM(l1=1, l2=2), FastV(K=2), FastV(K=2, R=1), FastV(K=2, rank=3), PyramidDrop(layer_list=(2, 3, 4)),
     VisualTokensWithdrawal(K=2)],
    ids=str,
)  # fmt: skip
def test_what_is_kept_is_what_is_priced(method: object, visual: int) -> None:
    layer = layer_of(4, visual)
    kept = after(method, layer)
    if kept is not None:
        layer.apply(kept, method.name, len(kept), "keep")
    schedule = method.replace(**({"retention": 1.0} if isinstance(method, AIM) else {})).schedule(
        Workload(DECODER, (Source("image", (visual,)),), 4)
    )
    assert len(layer.visual) == schedule[2] and len(layer.text) == 4


@pytest.mark.parametrize("method", [FastV(K=2), PyramidDrop(layer_list=(2, 3, 4)), AIM(l1=1, l2=3)], ids=str)
def test_the_highest_scores_stay_in_order(method: object) -> None:
    layer = layer_of(4, 10)
    if isinstance(method, AIM):
        score = layer.importance()
    else:
        score = (layer.attention() if isinstance(method, FastV) else layer.next_attention())[:, 0].mean(0)
    picked = after(method, layer)
    left = sorted(set(range(10)) - set(picked.tolist()))
    assert picked.tolist() == sorted(picked.tolist())
    assert score[layer.visual[picked]].min() >= score[layer.visual[left]].max()


def test_aim_prunes_one_layer_earlier_where_asked() -> None:
    assert AIM(l1=3, l2=5).layers(6) == (3, 4) and AIM(l1=3, l2=5, prune_before=True).layers(6) == (2, 3)
    assert AIM(l1=6, l2=7).layers(6) == () and AIM(l1=5, l2=7).layers(6) == ()


def test_a_reduction_is_made_of_tensors_on_the_tokens_device() -> None:
    result = decide(AIM(retention=0.5, merge_at="pre_llm"), tokens_of((4, 4)))
    assert isinstance(result, Reduction) and result.anchors.dtype == torch.long == result.assignment.dtype
