"""Golden cases of the methods that act on the KV cache too, through the plugins as shipped (tests/golden_more)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import GoldenCases
from tokenzoo_plugins.mustdrop import MustDrop
from tokenzoo_plugins.prunevid import PruneVid, scenes_of

from tokenzoo import DecoderLayer, EncoderLayer, Reduction, ops
from tokenzoo.method.decoder_layer import Places
from tokenzoo.testing.authors import decide, visual_tokens

GOLDEN = GoldenCases("golden_more")
METHODS = ("prunevid", "mustdrop_windows", "mustdrop_keyset")
cases, golden = GOLDEN.cases, GOLDEN.values


def prunevid(arrays: dict[str, Any]) -> tuple[PruneVid, Any]:
    method = PruneVid(
        tau=arrays["tau"],
        segments=arrays["segment_ratio"],
        clusters=arrays["cluster_ratio"],
        alpha=arrays["alpha"],
        neighbours=arrays["k"],
    )
    x = arrays["x"]
    return method, visual_tokens(x.flatten(0, 1), [(1, x.shape[1])] * len(x), kind="video")


@pytest.mark.parametrize("name", cases("prunevid_*"))
def test_prunevid_merges_scenes(name: str) -> None:
    arrays = golden(name)
    method, tokens = prunevid(arrays)
    labels = ops.dpc_knn(arrays["x"].mean(1), int(arrays["T"] * method.segments), method.neighbours).assignment
    assert torch.equal(labels[:, None] == labels, arrays["frame_labels"][:, None] == arrays["frame_labels"])
    scenes = method.scenes(arrays["x"])
    assert [stop - start for start, stop in scenes] == arrays["windows"].tolist()
    result = decide(method, tokens)
    assert isinstance(result, Reduction)
    assert torch.allclose(result.features, arrays["out"], rtol=1e-5, atol=1e-5)
    assert (result.anchors % arrays["P"]).tolist() == arrays["pos_in_frame"].tolist()
    frame = torch.where(arrays["frame"] < 0, -1 - arrays["frame"], arrays["frame"])  # a scene's static tokens: its first frame
    assert (result.anchors // arrays["P"]).tolist() == frame.tolist()
    assert int(result.assignment.min()) >= 0 and torch.equal(result.assignment.unique(), torch.arange(len(result.anchors)))


class Attended(DecoderLayer):
    """A layer of a video's tokens and the text behind them, of which the text's attention [heads, rows, tokens] is given."""

    def attention(self, rows: Any = "last") -> torch.Tensor:
        return torch.cat([self.signals, torch.ones(*self.signals.shape[:2], len(self.text))], dim=2)

    def places(self) -> Places:
        anchors, patches = self.memory["anchors"], self.memory["patches"]
        return Places(torch.zeros_like(anchors), anchors // patches, anchors % patches, ("video",))


@pytest.mark.parametrize("name", cases("prunevid_*"))
def test_prunevid_keeps_what_the_text_attends_to(name: str) -> None:
    arrays = golden(name)
    method, tokens = prunevid(arrays)
    anchors = decide(method, tokens).anchors
    count = len(anchors)
    hidden, text = torch.zeros(count + 6, 4), torch.arange(count, count + 6)
    layer = Attended(10, 32, hidden, hidden, torch.arange(count), text, count, arrays["attn"], text_behind=6)
    layer.source_memories, layer.memory = [tokens.memory], {"anchors": anchors, "patches": arrays["P"]}
    assert method.pick(layer, None).tolist() == arrays["kept_stage2"].tolist()


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [
        ([0], [1]),
        ([0, 1, 2], [3]),  # no label has a run: one scene
        ([0, 0, 1, 0, 0], [3, 2]),  # equal runs of a label both stay; the tie goes to the left
        ([0, 0, 1, 2, 2, 2], [2, 4]),  # the longer neighbour is the right one
        ([3, 0, 0, 1, 2, 2, 2], [4, 3]),  # the left one has grown by the first frame
        ([0, 0, 1, 2, 2, 3, 4], [3, 4]),  # what follows the last run does not count when it is compared
    ],
)
def test_scenes_of_labels(labels: list[int], lengths: list[int]) -> None:
    assert [stop - start for start, stop in scenes_of(labels)] == lengths


# --- MustDrop -------------------------------------------------------------------------------------------------------


def merged_windows(arrays: dict[str, Any]) -> EncoderLayer:
    x = arrays["x"]
    patches = x.shape[1] - 1
    layer = EncoderLayer(0, 24, "layer", x[:, 1:], torch.ones(len(x), patches), patches, True, lambda: x)
    layer.apply(MustDrop(similar=arrays["threshold"]).encoder_pick(layer, None), "mustdrop", None)
    return layer


@pytest.mark.parametrize("name", cases("mustdrop_windows_*", "mustdrop_keyset_*"))
def test_mustdrop_merges_windows(name: str) -> None:
    arrays = golden(name)
    layer = merged_windows(arrays)
    assert torch.allclose(layer.hidden_states, arrays["out"][:, 1:], atol=1e-6)
    assert "size" not in arrays or torch.equal(layer.sizes, arrays["size"][:, 1:])
    if "cls_row" in arrays:
        assert MustDrop().key_set(arrays["cls_row"][0].mean(0)[1:]).tolist() == arrays["key_set"][0].tolist()


def test_mustdrop_leaves_a_border_that_fills_no_window() -> None:
    windows, rest = MustDrop().windows(25, torch.device("cpu"))
    assert windows.tolist() == [[0, 1, 2, 5, 6, 7, 10, 11, 12]] and len(rest) == 16
    assert len(MustDrop().windows(12, torch.device("cpu"))[1]) == 12  # no square


def test_no_golden_case_is_left_untested() -> None:
    assert GOLDEN.named(*(f"{method}_*" for method in METHODS)) == GOLDEN.tested
