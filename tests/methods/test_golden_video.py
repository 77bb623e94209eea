"""The video methods against what their released code returned (tests/golden_more), through the plugins as shipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenzoo_plugins.dycoke import DyCoke

from tokenzoo.testing.authors import decide, visual_tokens

FOLDER = Path(__file__).parents[1] / "golden_more"
METHODS = ("dycoke",)
TESTED: set[str] = set()


def cases(pattern: str) -> list[str]:
    names = sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))
    TESTED.update(names)
    return names


@cache
def golden(name: str) -> dict[str, Any]:
    """The arrays of a case; those of no dimension as Python numbers."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        arrays = {key: torch.tensor(stored[key]) for key in stored.files}
    return {key: value if value.ndim else value.item() for key, value in arrays.items()}


def video(x: torch.Tensor, frames: int, encoder: Any = None) -> Any:
    """The event of a video x [frames · tokens, width]."""
    return visual_tokens(x, [(1, len(x) // frames)] * frames, kind="video", encoder=encoder)


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


# --- every case -----------------------------------------------------------------------------------------------------


def test_no_case_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz") if path.stem.split("_")[0] in METHODS} == TESTED
