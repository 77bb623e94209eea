"""The parameters of a method: the fields of its dataclass, checked by their type hints, written as a spec."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, get_type_hints

from tokenzoo.errors import UserError, unknown


def check_names(method: type[Any], parameters: dict[str, Any]) -> None:
    """Raise UserError for a parameter the method does not have."""
    known = [field.name for field in dataclasses.fields(method)]
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of '{method.name}'", name, known or ["none"], f"tokenzoo show {method.name}")


def validate(method: Any) -> None:
    """Check and convert each field by its type hint (pydantic's lax mode: "14" becomes 14 for an int)."""
    from pydantic import ValidationError

    for name, adapter in _adapters(type(method)).items():  # type: ignore[arg-type]
        value = getattr(method, name)
        try:
            checked = adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(
                f"Parameter '{name}' of '{method.name}' cannot be {value!r}: {problem}. Run 'tokenzoo show {method.name}'."
            ) from None
        object.__setattr__(method, name, checked)


@functools.cache
def _adapters(method: type[Any]) -> dict[str, Any]:
    """One pydantic adapter per field, made once: making them costs more than the checks."""
    from pydantic import TypeAdapter

    hints = get_type_hints(method, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(method)}


def as_specification(method: Any) -> str:
    """The method with the parameters that differ from their defaults: `fastv:K=3,R=0.75`."""
    changed = [
        f"{field.name}={as_yaml(getattr(method, field.name))}"
        for field in dataclasses.fields(method)
        if getattr(method, field.name) != default(field)
    ]
    return method.name + (":" + ",".join(changed) if changed else "")


def as_yaml(value: Any) -> str:
    """A parameter's value as a spec writes it: numbers and words as they are, sequences as [a,b]."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def default(field: dataclasses.Field) -> Any:
    """The default of a field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
