"""The video methods against what their released code returned (tests/golden_more), through the plugins as shipped."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from golden_cases import GoldenCases
from tokenzoo_plugins.dycoke import DyCoke
from tokenzoo_plugins.fastvid import FastVID
from tokenzoo_plugins.flashvid import FlashVID
from tokenzoo_plugins.holitom import HoliTom

import tokenzoo
from tokenzoo import Architecture, DecoderLayer, Reduction, UnsupportedError, ops
from tokenzoo.testing import tiny_inputs, tiny_model
from tokenzoo.testing.authors import decide, visual_tokens

METHODS = ("dycoke", "holitom", "flashvid", "fastvid")
GOLDEN = GoldenCases("golden_more")
cases, golden = GOLDEN.cases, GOLDEN.values


def video(x: torch.Tensor, frames: int, encoder: Any = None) -> Any:
    """The event of a video x [frames · tokens, width]."""
    architecture = Architecture("by hand", x.shape[1], 28, 1, 1, 1, 1, encoder_layers=1, pooling_head=True)
    grids = [(1, len(x) // frames)] * frames
    return visual_tokens(x, grids, kind="video", encoder=encoder, architecture=architecture)


class Encoder:
    """An encoder of which the attention on each token [tokens] and the frames' vectors [frames, width] are given."""

    def __init__(self, attention: torch.Tensor, vectors: torch.Tensor | None = None) -> None:
        self.given, self.vectors = attention, vectors

    def attention(self, layer: int, queries: str, early: bool) -> torch.Tensor:
        return self.given.flatten()[None]

    def pooling_head(self, early: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.given.flatten(), self.vectors


class Layer(DecoderLayer):
    """A decoder layer of which the last row's attention [heads, tokens] is given."""

    def attention(self, rows: Any = "last") -> torch.Tensor:
        return self.signals[:, None]


def decoder_layer(arrays: dict[str, Any], hidden: torch.Tensor) -> Layer:
    start, stop, total = arrays["video_start"], arrays["video_start"] + arrays["video_len"], len(hidden)
    visual, everything = torch.arange(start, stop), torch.arange(total)
    text = everything[(everything < start) | (everything >= stop)]
    return Layer(17, 28, hidden, hidden, visual, text, len(visual), arrays["attn_last"])


def told(result: Reduction) -> bool:
    """Whether each output is said to hold the token that it stands for (the first of two that stand for the same)."""
    outputs = result.assignment[result.anchors]
    return bool((result.anchors[outputs] == result.anchors).all()) and int(result.assignment.max()) < len(result.anchors)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# --- DyCoke ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("dycoke_*"))
def test_dycoke(name: str) -> None:
    """`odd_*`: the released code loses the last frame of an odd number, which stays here on purpose."""
    arrays = golden(name)
    tokens = video(arrays["x"], arrays["T"])
    kept = decide(DyCoke(k=arrays["k"]), tokens)
    counts = arrays["counts"].tolist()
    if name.startswith("dycoke_odd"):
        assert counts[-1] == 0 and tokens.left[-1] == arrays["P"] and tokens.left[:-1] == tuple(counts[:-1])
        last = torch.arange((arrays["T"] - 1) * arrays["P"], arrays["T"] * arrays["P"])
        assert kept.tolist() == [*arrays["kept"].tolist(), *last.tolist()]
    else:
        assert tokens.left == tuple(counts) and kept.tolist() == arrays["kept"].tolist()
        assert torch.equal(arrays["x"][kept], arrays["out"])


def test_dycoke_compares_short_videos_in_pairs() -> None:
    """Deviation on purpose: the released code crashes on four frames or fewer."""
    x = torch.randn(4 * 6, 5, generator=torch.Generator().manual_seed(0))
    for frames, counts in ((1, None), (2, (6, 3)), (3, (6, 3, 6)), (4, (6, 3, 6, 3))):
        tokens = video(x[: frames * 6], frames)
        kept = decide(DyCoke(k=0.5), tokens)
        assert (kept is None) == (counts is None) and (kept is None or tokens.left == counts)


# --- HoliTom --------------------------------------------------------------------------------------------------------


def holitom(arrays: dict[str, Any]) -> Reduction:
    method = HoliTom(
        retention=arrays["retain_ratio"],
        tau=arrays["tau"],
        beta=arrays["beta"],
        neighbours=arrays["K"],
        window=arrays["max_window"],
    )
    result = decide(method, video(arrays["x"].flatten(0, 1), arrays["T"], Encoder(arrays["attn"])))
    assert isinstance(result, Reduction) and told(result)
    return result


@pytest.mark.parametrize("name", [name for name in cases("holitom_*") if "_llm_" not in name])
def test_holitom(name: str) -> None:
    arrays = golden(name)
    windows = ops.static_windows(ops.frame_similarity(arrays["x"]) > arrays["tau"], arrays["max_window"])
    assert [(start, stop - 1) for start, stop in windows] == list(map(tuple, arrays["windows"].tolist()))
    result, frame = holitom(arrays), arrays["frame"]
    assert (result.anchors % arrays["P"]).tolist() == arrays["pos_in_frame"].tolist()
    assert (result.anchors // arrays["P"]).tolist() == torch.where(frame < 0, -1 - frame, frame).tolist()
    if not arrays["grid_newline"]:
        assert close(result.features, arrays["out"])
        return
    # LLaVA-Video: by place, and a newline behind each row that keeps a token; newlines are the host's, not the method's
    side, rows, last = round(arrays["P"] ** 0.5), [], None
    for place in sorted(range(len(result.anchors)), key=lambda place: (int(result.anchors[place]), place)):
        row = int(result.anchors[place]) // side
        rows += [arrays["newline"]] * (last not in (None, row))
        rows.append(result.features[place])
        last = row
    assert close(torch.stack([*rows, arrays["newline"]]), arrays["out"])


@pytest.mark.parametrize("name", cases("holitom_llm_*"))
def test_holitom_merges_inside_the_llm(name: str) -> None:
    arrays = golden(name)
    layer, method = decoder_layer(arrays, arrays["hidden"]), HoliTom(drop=arrays["r"])
    (count,) = method.kept(arrays["video_len"], 28).values()
    assert count == len(arrays["top_by_attention"])
    layer.apply(method.pick(layer, count), "holitom", count, "keep")
    assert layer.kept.tolist() == arrays["kept"].tolist()
    assert close(layer.hidden_states, arrays["out"])


# --- FlashVID -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in cases("flashvid_*") if "_llm_" not in name])
def test_flashvid(name: str) -> None:
    arrays = golden(name)
    method = FlashVID(
        retention=arrays["retention"],
        expansion=arrays["expansion"],
        alpha=arrays["alpha"],
        link=arrays["temporal_threshold"],
        cut=arrays["segment_threshold"],
        segments=arrays["min_segments"],
        version=arrays["method"] + 1,
    )
    means = arrays["x"].mean(1)
    segments = ops.frame_segments(ops.frame_similarity(means), method.cut, method.segments)
    assert [stop - start for start, stop in segments] == [length for length in arrays["segments"].tolist() if length]
    result = decide(method, video(arrays["x"].flatten(0, 1), arrays["T"], Encoder(arrays["attn"])))
    assert isinstance(result, Reduction) and told(result) and result.anchors.tolist() == arrays["kept"].tolist()
    assert torch.bincount(result.anchors // arrays["P"], minlength=arrays["T"]).tolist() == arrays["counts"].tolist()
    if len(result.anchors.unique()) == len(result.anchors):
        assert close(result.features, arrays["out"])
        return
    # where an index stands twice (picked and a cluster's centre), the released order of the two is undefined
    for place in result.anchors.unique():
        ours, theirs = (rows[result.anchors == place] for rows in (result.features, arrays["out"]))
        assert close(ours, theirs) or close(ours.flip(0), theirs)


@pytest.mark.parametrize("name", cases("flashvid_llm_*"))
def test_flashvid_prunes_inside_the_llm(name: str) -> None:
    arrays = golden(name)
    hidden = torch.zeros(arrays["attn_last"].shape[1], 4)
    layer, method = decoder_layer(arrays, hidden), FlashVID(inside=arrays["r"])
    (count,) = method.kept(arrays["video_len"], 28).values()
    assert count == arrays["n_kept"] and list(method.kept(9, 28)) == [19]
    layer.apply(method.pick(layer, count), "flashvid", count, "keep")
    assert layer.kept.tolist() == arrays["kept"].tolist()


# --- FastVID --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("fastvid_*"))
def test_fastvid(name: str) -> None:
    arrays = golden(name)
    start, stop, frames, places = (arrays[key] for key in ("video_start", "video_len", "T", "P"))
    stop += start
    rows = torch.arange(start, stop)
    if arrays["variant_llava_video"]:  # newlines end the rows; the host keeps them, the method does not see them
        rows = rows.view(-1, arrays["grid"] + 1)[:, :-1].flatten()
    method = FastVID(
        retention=arrays["retention"],
        segments=arrays["dyseg_c"],
        cut=arrays["dyseg_tau"],
        context=arrays["d"],
        stride=arrays["p"],
        beta=arrays["beta"],
        version="llava-video" if arrays["variant_llava_video"] else "onevision",
        signal="head",
    )
    segments = ops.frame_segments(ops.frame_similarity(arrays["frame_global"]), method.cut, method.segments)
    assert [end - begin for begin, end in segments] == arrays["segments"].tolist()
    tokens = video(arrays["hidden"][rows], frames, Encoder(arrays["frame_attn"], arrays["frame_global"]))
    result = decide(method, tokens)
    assert isinstance(result, Reduction) and told(result) and tokens.count in (None, method.budget(places) * frames)
    if not arrays["variant_llava_video"]:
        assert torch.bincount(result.anchors // places, minlength=frames).tolist() == arrays["counts"].tolist()
    seen = torch.isin(arrays["kept"], rows)
    assert rows[result.anchors].tolist() == arrays["kept"][seen].tolist()
    assert close(result.features, arrays["out"][seen])


def test_fastvid_works_where_the_released_code_crashes() -> None:
    """No context, fewer frames than segments, fewer free tokens than an anchor's quota."""
    generator = torch.Generator().manual_seed(0)
    for frames, places, retention in ((2, 9, 0.1), (3, 36, 0.05), (8, 16, 0.9), (1, 25, 0.5)):
        encoder = Encoder(torch.rand(frames, places, generator=generator), torch.ones(frames, 4))
        for version in ("onevision", "llava-video"):
            tokens = video(torch.randn(frames * places, 6, generator=generator), frames, encoder)
            method = FastVID(retention=retention, version=version, segments=1)
            count = len(decide(method, tokens).anchors)
            assert 0 <= method.budget(places) * frames - count <= (frames if version == "onevision" else 0)


@torch.no_grad()
def test_fastvid_reads_the_pooling_head_of_a_model_that_runs_it() -> None:
    config = deepcopy(tiny_model("llava-onevision", layers=2).config)
    config.vision_config.vision_use_head = True
    model, seen = transformers.LlavaOnevisionForConditionalGeneration(config).eval(), []
    inputs = tiny_inputs(model, "video")

    class Watched(FastVID):
        def signals(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(super().signals(tokens))
            return seen[-1]

    with tokenzoo.apply(model, Watched(retention=0.4)):
        model(**inputs)
    tower, pixels = model.model.vision_tower, inputs["pixel_values_videos"][0]
    output = tower(pixels)
    probe = tower.head.probe.expand(len(pixels), -1, -1)
    weights = tower.head.attention(probe, output.last_hidden_state, output.last_hidden_state)[1]
    ((attention, vectors),) = seen
    assert close(vectors, output.pooler_output)
    assert close(attention, model.model.apply_pooling(weights.transpose(1, 2)).flatten())


def test_fastvid_says_where_there_is_no_pooling_head() -> None:
    model = tiny_model("llava-onevision", layers=2)
    with (
        pytest.raises(UnsupportedError, match=r"pooling head.*Leave signal at 'auto'"),
        tokenzoo.apply(model, FastVID(signal="head")),
    ):
        pass


# --- every case -----------------------------------------------------------------------------------------------------


def test_no_case_is_left_out() -> None:
    assert GOLDEN.named(*(f"{method}_*" for method in METHODS)) == GOLDEN.tested
