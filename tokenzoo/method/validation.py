"""What a method may return, checked before the host acts on it, so that a faulty method fails in its own name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenzoo.errors import FailedError
from tokenzoo.lazy import torch
from tokenzoo.method.reduction import Reduction

if TYPE_CHECKING:
    from torch import Tensor


class InvalidReductionError(FailedError):
    """A method returned something that is no reduction of the tokens it was given."""


@dataclass
class Checks:
    """Checks of values that a device still works out.

    On the CPU a check is answered at once. An accelerator would have to be waited for, so what it answers is collected and
    read all at once by `settle`: when the trace is read, the next prompt comes, or the block ends.
    """

    pending: list[tuple[Tensor, Callable[[], None]]] = field(default_factory=list)

    def expect_not(self, wrong: Tensor, explain: Callable[[], None]) -> None:
        """`explain` raises what is to be said where `wrong`, one boolean, is true."""
        if wrong.device.type != "cpu":
            self.pending.append((wrong, explain))
        elif bool(wrong):
            explain()

    def settle(self) -> None:
        """Read every answer; raise for the first that is wrong."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        place = pending[0][0].device
        for wrong, (_, explain) in zip(torch.stack([flag.to(place) for flag, _ in pending]).tolist(), pending, strict=True):
            if wrong:
                explain()


def check_reduction(
    result: Tensor | Reduction, tokens: Tensor, method: str, where: str, unique_anchors: bool, checks: Checks
) -> Tensor:
    """Raise InvalidReductionError unless `result` is a valid reduction of `tokens` [count, width]; return its indices.

    With a leading dimension of views, [views, count, width], each view's indices are its own.
    On an accelerator indices are held within range until `checks` are settled: there a wrong one would end the process.
    """
    fail = _fails(method, where)
    count, views = tokens.shape[-2], list(tokens.shape[:-2])
    merged = isinstance(result, Reduction)
    index = result.anchors if isinstance(result, Reduction) else result
    if not isinstance(index, torch.Tensor):
        fail(f"must return an index tensor, a Reduction or None, not {type(index).__name__}.")
    held = check_index_tensor(index, count, tokens.device, views, unique_anchors or not merged, fail, checks)
    if isinstance(result, Reduction):
        check_features(result.features, list(index.shape), tokens, fail, checks)
    return held


def check_indices(index: Tensor, count: int, device: torch.device, method: str, where: str, checks: Checks) -> Tensor:
    """`check_reduction` of what must be plain indices, of `count` tokens on `device`; return them."""
    fail = _fails(method, where)
    if not isinstance(index, torch.Tensor):
        fail(f"must return an index tensor, not {type(index).__name__}.")
    return check_index_tensor(index, count, device, (), True, fail, checks)


def _fails(method: str, where: str) -> Callable[[str], None]:
    """What raises InvalidReductionError in the method's name."""

    def fail(problem: str) -> None:
        raise InvalidReductionError(f"Method '{method}' ({where}): {problem}")

    return fail


def check_index_tensor(
    index: Tensor,
    count: int,
    device: torch.device,
    views: Sequence[int],
    unique: bool,
    fail: Callable[[str], None],
    checks: Checks,
) -> Tensor:
    """Long, of one dimension (behind that of the views), beside the tokens, within `count`; return the indices."""
    if index.dtype != torch.long or index.ndim != 1 + len(views) or list(index.shape[:-1]) != list(views):
        wanted = f"[{views[0]} views, kept]" if views else "[kept]"
        fail(f"kept indices must be a long tensor {wanted}, not {index.dtype} {list(index.shape)}.")
    if index.device != device:
        fail(f"kept indices lie on {index.device}, the tokens on {device}.")
    if not index.is_meta:
        check_values(index, count, unique, fail, checks)
    return index if index.device.type == "cpu" else index.clamp(0, max(count - 1, 0))


def check_count(left: int, count: int | None, method: str, where: str) -> None:
    """Raise InvalidReductionError where a method leaves another number of tokens than it declared (None: any)."""
    if count is not None and left != count:
        _fails(method, where)(f"it declared {count} tokens and returned {left}.")


def check_values(index: Tensor, count: int, unique: bool, fail: Callable[[str], None], checks: Checks) -> None:
    """Indices within range and, where they must be, different from each other."""
    ascending = index.sort(-1).values
    outside = ((ascending < 0) | (ascending >= count)).any()
    twice = (ascending[..., 1:] == ascending[..., :-1]).any() if unique else outside

    def explain() -> None:
        if bool(outside):
            fail(f"kept index {int(index.min())}..{int(index.max())} is out of range: {count} visual tokens were given.")
        fail("the same token is kept twice.")

    checks.expect_not(outside | twice, explain)


def check_features(features: Tensor, kept: list[int], tokens: Tensor, fail: Callable[[str], None], checks: Checks) -> None:
    """Merged features of the right shape ([*kept, width]) and type, all finite, no more than there were."""
    count, width = tokens.shape[-2:]
    if list(features.shape) != [*kept, width]:
        fail(f"features have shape {list(features.shape)}, expected {[*kept, width]}.")
    if features.dtype != tokens.dtype:
        fail(f"features are {features.dtype}, the tokens {tokens.dtype}.")
    if kept[-1] > count:
        fail(f"{kept[-1]} tokens were made of {count}: a reduction cannot grow.")
    if not features.is_meta:
        checks.expect_not(~torch.isfinite(features).all(), lambda: fail("features hold NaN or infinity."))
