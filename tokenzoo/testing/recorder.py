"""A method under observation: it does what it always does, and every call of its hooks is written down."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from tokenzoo.method.reducer import Reduction, TokenReducer
from tokenzoo.method.signatures import HOOKS


@dataclass
class Call:
    """One call of a hook: the visual tokens it was given, what it returned, which of its inputs it changed."""

    hook: str
    layer: int | None
    features: torch.Tensor
    result: torch.Tensor | Reduction | None
    changed: list[str]

    @property
    def output(self) -> torch.Tensor:
        """The visual tokens that go on [kept, width]."""
        if self.result is None:
            return self.features
        return self.result.features if isinstance(self.result, Reduction) else self.features[self.result]


def watch(reducer: TokenReducer) -> tuple[TokenReducer, list[Call]]:
    """Return a copy of the reducer that records its calls, and the list they go to."""
    calls: list[Call] = []
    members: dict[str, Any] = {hook: _recording(type(reducer), hook, calls) for hook in HOOKS if reducer.implements(hook)}
    copy: TokenReducer = object.__new__(type(type(reducer).__name__, (type(reducer),), members))
    copy.__dict__.update(reducer.__dict__)
    return copy, calls


def _recording(cls: type[TokenReducer], hook: str, calls: list[Call]) -> Any:
    original = getattr(cls, hook)

    @functools.wraps(original)
    def recording(self: TokenReducer, event: Any) -> Any:
        before = _tensors(event)
        result = original(self, event)
        after = _tensors(event, clone=False)
        changed = [name for name, value in before.items() if not _same(value, after.get(name))]
        features = before["hidden_states"][before["visual"]] if hook == "after_layer" else before["features"]
        kept = result
        if isinstance(result, Reduction):
            kept = Reduction(result.features.clone(), result.anchors.clone(), result.assignment)
        elif isinstance(result, torch.Tensor):
            kept = result.clone()
        calls.append(Call(hook, getattr(event, "index", None), features, kept, changed))
        return result

    return recording


def _tensors(event: Any, clone: bool = True) -> dict[str, torch.Tensor]:
    assert is_dataclass(event)
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: value.clone() if clone else value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _same(before: torch.Tensor, after: Any) -> bool:
    return isinstance(after, torch.Tensor) and before.shape == after.shape and torch.equal(before, after)
