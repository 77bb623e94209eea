"""Golden cases of methods that act before the LLM, through the plugin as shipped: the published code's picks are ours.

Cases of `golden_more`; each array is told in its README.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenzoo_plugins.vidcom2 import VidCom2, distinct_channels, likeness

from tokenzoo.testing.authors import decide, visual_tokens

FOLDER = Path(__file__).parents[1] / "golden_more"
METHODS = ["vidcom2"]
TESTED: set[str] = set()


def cases(*patterns: str) -> list[str]:
    names = sorted(path.stem for pattern in patterns for path in FOLDER.glob(f"{pattern}.npz"))
    TESTED.update(names)
    return names


@cache
def golden(name: str) -> dict[str, Any]:
    arrays = np.load(FOLDER / f"{name}.npz")
    return {key: torch.tensor(arrays[key]) if arrays[key].dtype.kind != "U" else arrays[key] for key in arrays.files}


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=tolerance)


# --- VidCom2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("vidcom2_*"))
def test_vidcom2(name: str) -> None:
    """The grid case too: its newlines are the host's, so indices of tokens are compared."""
    arrays = golden(name)
    frames, tokens = int(arrays["T"]), int(arrays["P"])
    video = visual_tokens(arrays["x"], [(1, tokens)] * frames, kind="video")
    method = VidCom2(retention=float(arrays["R"]), rounding="released")
    x = distinct_channels(arrays["x"])
    assert close(likeness(x, x.mean(0)).view(frames, tokens), arrays["video_score"])
    assert close(method.scales(-arrays["video_score"].mean(1)), arrays["scales"])
    kept = decide(method, video)
    assert kept.tolist() == arrays["kept"].tolist()
    assert torch.bincount(video.view[kept], minlength=frames).tolist() == arrays["counts"].tolist()
    assert "grid" in arrays or close(arrays["x"][kept], arrays["out"])


@pytest.mark.parametrize("name", cases("vidcom2_*"))
def test_vidcom2_with_an_exact_budget_keeps_at_most_one_token_a_frame_more_or_less(name: str) -> None:
    arrays = golden(name)
    frames, tokens, share = int(arrays["T"]), int(arrays["P"]), float(arrays["R"])
    video = visual_tokens(arrays["x"], [(1, tokens)] * frames, kind="video")
    kept = decide(VidCom2(retention=share), video)
    assert len(kept) == round(share * frames * tokens)
    assert (torch.bincount(video.view[kept], minlength=frames) - arrays["counts"]).abs().max() <= 1


# --- all of them ----------------------------------------------------------------------------------------------------


def test_no_golden_case_is_left_untested() -> None:
    assert {path.stem for method in METHODS for path in FOLDER.glob(f"{method}_*.npz")} == TESTED
