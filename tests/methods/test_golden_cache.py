"""Golden cases of the methods that act on the KV cache too, through the plugins as shipped (tests/golden_more)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import GoldenCases
from tokenzoo_plugins.prunevid import PruneVid, scenes_of

from tokenzoo import DecoderLayer, Reduction, ops
from tokenzoo.testing.authors import decide, visual_tokens

GOLDEN = GoldenCases("golden_more")
METHODS = ("prunevid",)
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
    """A layer of visual tokens and the text behind them, of which the text's attention [heads, rows, tokens] is given."""

    def attention(self, rows: Any = "last") -> torch.Tensor:
        return torch.cat([self.signals, torch.ones(*self.signals.shape[:2], len(self.text))], dim=2)

    def sources(self) -> list[torch.Tensor]:
        return [torch.arange(len(self.visual))]


@pytest.mark.parametrize("name", cases("prunevid_*"))
def test_prunevid_keeps_what_the_text_attends_to(name: str) -> None:
    arrays = golden(name)
    method, tokens = prunevid(arrays)
    count = len(decide(method, tokens).anchors)
    hidden, text = torch.zeros(count + 6, 4), torch.arange(count, count + 6)
    layer = Attended(10, 32, hidden, hidden, torch.arange(count), text, count, arrays["attn"], text_behind=6)
    layer.source_memories = [tokens.memory]
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


def test_no_golden_case_is_left_untested() -> None:
    assert GOLDEN.named(*(f"{method}_*" for method in METHODS)) == GOLDEN.tested
