"""A method under observation: it does what it always does, and every call of its hooks is written down."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import Reduction
from tokenzoo.method.signatures import decisions


@dataclass
class Call:
    """One decision of method number `method`: the visual tokens it was given, what it returned, which inputs it changed.

    `layer`: the decoder layer at, after or after whose attention it decided (-1: before layer 0), or the encoder layer, `after` a
    half of it; None between encoder and LLM. `early`: before the projector. `features`: of a cache the numbers of the tokens
    alone; inside the encoder features and result have a leading dimension for the views.
    """

    method: int
    layer: int | None
    early: bool
    features: torch.Tensor
    result: torch.Tensor | Reduction
    changed: list[str]
    decision: str
    after: str | None = None

    @property
    def output(self) -> torch.Tensor:
        """The visual tokens that go on [kept, width]."""
        return self.result.features if isinstance(self.result, Reduction) else self.features[self.result]

    @property
    def anchors(self) -> list[int]:
        """The tokens that go on, as indices of those that were given."""
        return (self.result.anchors if isinstance(self.result, Reduction) else self.result).tolist()


def watch(reducer: TokenReducer, number: int = 0) -> TokenReducer:
    """Return a copy of the reducer that leaves its calls in the memory of whatever it is given (see `calls_of`)."""
    members = {decision: _recording(type(reducer), decision, number) for decision in decisions(reducer)}
    copy: TokenReducer = object.__new__(type(type(reducer).__name__, (type(reducer),), members))
    copy.__dict__.update(reducer.__dict__)
    return copy


def calls_of(memory: dict[str, Any]) -> list[Call]:
    """The calls that watched methods left in a memory, in order; those inside the encoder are apart."""
    return memory.get(_KEY, [])


def encoder_calls_of(memory: dict[str, Any]) -> list[Call]:
    """The calls inside the encoder, in order."""
    return memory.get(_ENCODER, [])


_KEY, _ENCODER = "tokenzoo.testing.recorder", "tokenzoo.testing.recorder.encoder"


def _recording(cls: type[TokenReducer], decision: str, number: int) -> Any:
    original = getattr(cls, decision)

    @functools.wraps(original)
    def recording(self: TokenReducer, event: Any, *more: Any) -> Any:
        before = _tensors(event)
        result = original(self, event, *more)
        after = _tensors(event, clone=False)
        changed = [name for name, value in before.items() if not _same(value, after.get(name))]
        inside = decision != "reduce"
        kept = result
        if isinstance(result, Reduction):
            goes = None if result.assignment is None else result.assignment.clone()
            kept = Reduction(result.features.clone(), result.anchors.clone(), goes, result.appended)
        elif isinstance(result, torch.Tensor):
            kept = result.clone()
        early, half = not inside and event.early, event.after if decision == "encoder_pick" else None
        given, layer = _given(decision, event, before), event.index if inside else None
        key = _ENCODER if decision == "encoder_pick" else _KEY
        event.memory[key] = [
            *event.memory.get(key, []),
            Call(number, layer, early, given, kept, changed, decision, half),
        ]
        return result

    return recording


def _given(decision: str, event: Any, before: dict[str, torch.Tensor]) -> torch.Tensor:
    """The visual tokens to choose from."""
    if decision == "reduce":
        return before["features"]
    if decision == "encoder_pick":
        return before["hidden_states"]
    if decision == "pick":
        return before["hidden_states"][before["visual"]]
    return before["visual"]


def _tensors(event: Any, clone: bool = True) -> dict[str, torch.Tensor]:
    assert is_dataclass(event)
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: value.clone() if clone else value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _same(before: torch.Tensor, after: Any) -> bool:
    return isinstance(after, torch.Tensor) and before.shape == after.shape and torch.equal(before, after)
