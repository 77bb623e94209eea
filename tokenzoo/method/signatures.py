"""What can be seen of a method's class without running it: names, signatures, defaults, misspelt hooks."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from typing import Any

from tokenzoo.errors import UserError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import HALVES

#: The decisions of a method, what it does to tokens, and what tells whether it takes each.
DECISIONS = {
    "encoder_pick": "acts_in_encoder",
    "reduce": "enters",
    "pick": "acts_inside",
    "pick_cached": "caches",
    "pick_read": "reads",
}
#: Every method of TokenReducer that a method may override, in the order of the documentation.
OVERRIDABLE = (
    "check",
    "check_model",
    "encoder_kept",
    "encoder_pick",
    "early",
    "left",
    "reduce",
    "encoder_layers",
    "kept",
    "score",
    "pick",
    "cached",
    "pick_cached",
    "query_rows",
    "read",
    "pick_read",
    "read_layers",
    "at_retention",
    "calibrate",
    "reduce_flops",
    "score_flops",
    "cached_flops",
    "read_flops",
)


def decisions(method: TokenReducer) -> list[str]:
    """The decisions that a method takes, in the order of a forward pass."""
    return [decision for decision, taken in DECISIONS.items() if getattr(method, taken)]


class InvalidMethodError(UserError):
    """A class that cannot be a method; the message says what to change."""


def check_class(cls: Any) -> None:
    """Raise InvalidMethodError unless `cls` is a well-formed TokenReducer."""
    if not inspect.isclass(cls) or not issubclass(cls, TokenReducer):
        raise InvalidMethodError(f"{cls!r} is no subclass of tokenzoo.TokenReducer.")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", cls.name or ""):
        raise InvalidMethodError(
            f"class {cls.__name__} needs a class attribute `name` of lower-case letters, digits, - or _, not {cls.name!r}."
        )
    if cls.acts_after not in HALVES:
        choices = " or ".join(map(repr, HALVES))
        raise InvalidMethodError(f"`acts_after` of class {cls.__name__} must be {choices}, not {cls.acts_after!r}.")
    _check_fields(cls)
    _check_misspelt(cls)
    for name in OVERRIDABLE:
        _check_signature(cls, name)


def _check_fields(cls: type[TokenReducer]) -> None:
    annotated = {
        name
        for name, hint in vars(cls).get("__annotations__", {}).items()
        if "ClassVar" not in str(hint) and not name.startswith("__")
    }
    known = {field.name for field in dataclasses.fields(cls)}
    if annotated - known:
        raise InvalidMethodError(f"class {cls.__name__} has parameters but lacks the @dataclass decorator.")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidMethodError(f"parameter '{field.name}' of '{cls.name}' needs a default value.")


def _check_misspelt(cls: type[TokenReducer]) -> None:
    """A hook under a name nobody calls would be passed over in silence."""
    known = set(dir(TokenReducer)) | {field.name for field in dataclasses.fields(cls)}
    for name, value in vars(cls).items():
        if not inspect.isfunction(value) or name.startswith("_") or name in known:
            continue
        close = difflib.get_close_matches(name, OVERRIDABLE, n=1, cutoff=0.8)
        if close and close[0] not in vars(cls):
            raise InvalidMethodError(f"method '{name}' of class {cls.__name__} is no hook. Did you mean '{close[0]}'?")


def _check_signature(cls: type[TokenReducer], name: str) -> None:
    value = inspect.getattr_static(cls, name)
    if value is vars(TokenReducer).get(name):
        return
    expected = list(inspect.signature(getattr(TokenReducer, name)).parameters.values())[1:]
    wanted = f"{name}(self{''.join(', ' + parameter.name for parameter in expected)})"
    if not inspect.isfunction(value):
        raise InvalidMethodError(f"'{name}' of class {cls.__name__} must be a method {wanted}.")
    try:
        inspect.signature(value).bind(*[None] * (len(expected) + 1))
    except TypeError:
        got = f"{name}{inspect.signature(value)}"
        raise InvalidMethodError(f"class {cls.__name__} defines {got}, expected {wanted}.") from None
