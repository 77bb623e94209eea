"""For a method's own test suite: the contract as parametrised tests, hand-made tokens, golden cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenzoo.method.accounting import check_whole, promised
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import Reduction
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.method.workload import Architecture, Source
from tokenzoo.testing.check import (
    BACKENDS,
    check_failure,
    check_full_retention,
    check_independence,
    tiny_case,
)
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import CASES, cases
from tokenzoo.testing.models import USUAL

Grids = tuple[int, int] | Sequence[tuple[int, int]]


def contract_tests(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str] = USUAL,
    backends: Sequence[str] = BACKENDS,
) -> Callable[..., None]:
    """Return a parametrised pytest test, one case per family, batch and backend: `test_contract = contract_tests(M())`.

    Families on which the method itself refuses to work are skipped with its reason.
    """
    import pytest

    runs = [(family, case, backend) for family in families for case in (*CASES, "repeated") for backend in backends]

    @pytest.mark.parametrize("run", runs, ids=["-".join(run) for run in runs])
    def test_contract(run: tuple[str, str, str]) -> None:
        family, case, backend = run
        if case == "repeated":
            if backend != backends[0]:
                pytest.skip("independent of the backend")
        elif case not in cases(tiny_case(family, "single", backend).model):
            pytest.skip(f"{family} takes no videos")
        reason = assert_contract(reducer, family, case, backend)
        if reason:
            pytest.skip(reason)

    return test_contract


def assert_contract(
    reducer: TokenReducer | type[TokenReducer], family: str = "llava", case: str = "left", backend: str = "sdpa"
) -> str:
    """Raise AssertionError, with every finding in words, unless the guarantees hold for one run.

    `case` is one of `tokenzoo.testing.CASES`, or "repeated": the same call twice, samples alone and in a batch,
    retention 1.0, an exception inside the block. Returns why, where the method cannot work on this family.
    """
    method = reducer if isinstance(reducer, TokenReducer) else reducer()
    if case == "repeated":
        unsupported = check_case(tiny_case(family, "single", backend), [method]).unsupported
        if unsupported:
            return unsupported
        checks = (check_independence, check_full_retention, check_failure)
        findings = [finding for check in checks for finding in check(method, family)]
    else:
        report = check_case(tiny_case(family, case, backend), [method])
        findings = report.findings
        if report.unsupported:
            return report.unsupported
    assert not findings, "\n".join(map(str, findings))
    return ""


def visual_tokens(features: torch.Tensor, grids: Grids, kind: str = "image", **more: Any) -> VisualTokens:
    """The visual tokens of one picture, made by hand to call `reduce` with.

    `features` [tokens, width]; `grids` (height, width), or one for each view; `more` are further fields of
    VisualTokens, such as `left`, `encoder` and `has_cls`.
    """
    views: list[Any] = [grids] if isinstance(grids[0], int) else list(grids)
    sizes = [height * width for height, width in views]
    if sum(sizes) != len(features):
        raise ValueError(f"The grids {views} hold {sum(sizes)} tokens, there are {len(features)} features.")
    view = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return VisualTokens(kind=kind, features=features, view=view, grids=tuple(views), **more)


def decide(reducer: TokenReducer, tokens: VisualTokens) -> torch.Tensor | Reduction | None:
    """What `reduce` returns for tokens made by hand, asked as the host asks; None where nothing is to be removed.

    Sets `tokens.left` to what the method declares. Raises UnsupportedError where it needs whole views and they are not.
    """
    check_whole(reducer, untouched=tokens.anchors is None)
    views = tuple(tokens.view_counts())
    source = Source(tokens.kind, views, grids=tokens.grids)  # type: ignore[arg-type]
    if tokens.architecture is None:
        tokens.architecture = Architecture(
            "by hand", tokens.features.shape[1], 1, 1, 1, 1, 1, encoder_layers=1, has_cls=tokens.has_cls
        )
    tokens.left = promised(reducer, views, source, tokens.architecture)
    return None if tokens.left is not None and sum(tokens.left) == sum(views) else reducer.reduce(tokens)


def assert_golden(reducer: TokenReducer, path: str | Path, tolerance: float = 1e-5) -> None:
    """Compare `reduce` with what the published code returned on the same input, saved with numpy.savez.

    The file holds `features` [tokens, width] and `grids` [views, 2], and what is expected: `kept` [kept], the indices
    in their order, or `merged` [kept, width], the features that remain.
    """
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    missing = {"features", "grids"} - set(arrays)
    if missing or not {"kept", "merged"} & set(arrays):
        raise ValueError(f"'{path}' must hold features, grids, and kept or merged; it holds {sorted(arrays)}.")
    grids = [(int(height), int(width)) for height, width in arrays["grids"].tolist()]
    result = decide(reducer, visual_tokens(arrays["features"], grids))
    if "kept" in arrays:
        kept = result.anchors if isinstance(result, Reduction) else result
        assert kept is not None and kept.tolist() == arrays["kept"].tolist(), (
            f"{path}: kept {None if kept is None else kept.tolist()}, expected {arrays['kept'].tolist()}."
        )
    if "merged" in arrays:
        features = arrays["features"]
        made = result.features if isinstance(result, Reduction) else features if result is None else features[result]
        assert made.shape == arrays["merged"].shape, f"{path}: {list(made.shape)} != {list(arrays['merged'].shape)}."
        difference = (made - arrays["merged"]).abs().max().item()
        assert difference <= tolerance, f"{path}: merged features differ by {difference:.2g} (allowed {tolerance:.0e})."
